"""Flink operator that admits, queues and runs requests: translates between Flink and `core.scheduling.task_loop`.

Keyed map state holds the queued requests, by number, as Kafka records. The queue in memory mirrors it, and is rebuilt
from it after a failure or a rescale.
"""

from collections.abc import Iterator
from typing import Any

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import MapStateDescriptor

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.key_groups import lane_of
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import Action, Settlement, TaskLoop
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.runtime.task_context import now_ms, task_context_of
from anabranch.operators.runtime.task_lock import lock_of
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.transport.endpoints import AGGREGATE, INFER, Sender, stage_receiver
from anabranch.operators.transport.frame_memory import open_frame
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import Record


class ServeFunction(KeyedProcessFunction):
    """Row(lane, frame of Kafka records) -> frames of answers; on the side letters, parts, work for other tasks."""

    def __init__(
        self,
        catalog: Catalog,
        backend: Backend,
        response_writer: ResponseWriter,
        *,
        max_message_bytes: int,
        policy: SchedulingPolicy,
        keys_by_group: tuple[int, ...],
        exchange: TransportOptions,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._response_writer = response_writer
        self._max_message_bytes = max_message_bytes
        self._policy = policy
        self._keys_by_group = keys_by_group
        self._exchange = exchange

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the state of waiting requests; loads every model and warms it up, before the first request."""
        task = task_context_of(runtime_context)
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        self._task = task
        meter = self._response_writer.meter
        self._metrics = FlinkMetrics(meter, runtime_context)
        self._defect_log = DefectLog(self._response_writer.defects, "serve", task)
        self._outbox = Sender(self._exchange, task, INFER, task.parallelism, meter)
        self._openings = Sender(self._exchange, task, AGGREGATE, task.parallelism, meter)
        self._unit_outboxes = {
            (model.name, model.version): Sender(
                self._exchange, task, stage_receiver(model, 0), model.stages[0].replicas, meter
            )
            for model in self._catalog.in_stages()
        }
        self._sessions = sessions = SessionPool(self._backend, task.index)
        sessions.load_all(self._catalog)
        self._admission = Admission(self._catalog, self._max_message_bytes, self._policy.default_priority)
        self._serving = InferenceTask(self._catalog, sessions.session_of, self._response_writer, task.index)
        self._loop = TaskLoop(
            lane_of(task.index, task.parallelism, self._keys_by_group),
            self._new_pipeline,
            self._held,
            lock_of(self._exchange.job, task.index),
            self._metrics.flush,
            now_ms,
            work_slice_ms=self._policy.work_slice_ms,
            sees_back_pressure=task.in_jvm,
        )

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        """Takes requests of this task's own key."""
        return self._carry_out(self._loop.on_frame(open_frame(value)), ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[object]:
        """Continues with a key; an event-time timer marks the end of the input."""
        key = _key(ctx.get_current_key())
        if ctx.time_domain() == TimeDomain.PROCESSING_TIME:
            return self._carry_out(self._loop.on_timer(key, timestamp), ctx)
        return self._carry_out(self._loop.on_end(key), ctx)

    def _carry_out(self, actions: Iterator[Action], ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        for action in actions:
            if isinstance(action, Settlement):
                for number in action.departed:
                    self._waiting.remove(number)
                for number, frame in action.arrived:
                    self._waiting.put(number, frame)
                if action.end_at_ms is not None:
                    ctx.timer_service().register_event_time_timer(action.end_at_ms)
                if action.wake_at_ms is not None:
                    ctx.timer_service().register_processing_time_timer(action.wake_at_ms)
            else:
                yield from emit(action)
        self._defect_log.report()

    def _new_pipeline(self) -> RequestPipeline:
        return RequestPipeline(
            self._admission,
            Router(
                self._catalog,
                self._sessions.costs_of,
                self._policy,
                self._outbox.pack,
                self._openings.pack,
                self._pack_unit,
            ),
            self._serving,
            self._response_writer,
            self._policy,
            offloading=self._offloading(),
        )

    def _pack_unit(self, model: ModelSpec, unit: Record) -> bytes:
        return self._unit_outboxes[model.name, model.version].pack(unit)

    def _offloading(self) -> LoadBalancer | None:
        if not self._policy.offloads or self._task.parallelism == 1:
            return None
        return LoadBalancer(self._policy, self._task.parallelism, learns=self._task.in_jvm)

    def _held(self) -> Iterator[tuple[int, bytes]]:
        return ((number, bytes(frame)) for number, frame in self._waiting.items())


def _key(key: Any) -> int:
    number: int = key[0] if isinstance(key, Row | tuple) else key
    return number
