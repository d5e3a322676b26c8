"""Flink operator that admits, queues and runs requests: translates between Flink and `core.scheduling.task_loop`.

Keyed map state holds the queued requests as Kafka records, by number. After a failure or a rescale it fills the queue.
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
from anabranch.operators.core.scheduling.key_groups import task_key
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import Action, Settlement, TaskLoop
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.runtime.task_context import TaskContext, now_ms, task_context_of
from anabranch.operators.runtime.task_lock import lock_of
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.transport.endpoints import AGGREGATE, INFER, Sender, stage_receiver
from anabranch.operators.transport.frame_memory import open_frame
from anabranch.schemas.model import Catalog


class ServeFunction(KeyedProcessFunction):
    """Row(task key, frame of Kafka records) -> frames of answers; side outputs: dead letters, parts, work, units."""

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
        """Opens state, and loads and warms up every model, before the first request."""
        task, writer, policy = task_context_of(runtime_context), self._response_writer, self._policy
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        self._defect_log = DefectLog(writer.defects, "serve", task)
        sessions = SessionPool(self._backend, task.index)
        sessions.load_all(self._catalog)
        pipeline = RequestPipeline(
            Admission(self._catalog, self._max_message_bytes, policy.default_priority, writer.defects),
            self._new_router(task, sessions),
            InferenceTask(self._catalog, sessions.session_of, writer, task.index),
            writer,
            policy,
        )
        offloads = policy.offloads and task.parallelism > 1
        self._loop = TaskLoop(
            task_key(task.index, task.parallelism, self._keys_by_group),
            pipeline,
            lambda: ((number, bytes(frame)) for number, frame in self._waiting.items()),
            lock_of(self._exchange.job, task.index),
            FlinkMetrics(writer.meter, runtime_context).flush,
            now_ms,
            policy,
            LoadBalancer(policy, task.parallelism, learns=task.in_jvm) if offloads else None,
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

    def _new_router(self, task: TaskContext, sessions: SessionPool) -> Router:
        def sender(receiver: str, readers: int) -> Sender:
            return Sender(self._exchange, task, receiver, readers, self._response_writer.meter)

        by_model = {
            (model.name, model.version): sender(stage_receiver(model, 0), model.stages[0].replicas)
            for model in self._catalog.in_stages()
        }
        return Router(
            self._catalog,
            sessions.costs_of,
            sender(INFER, task.parallelism).pack,
            sender(AGGREGATE, task.parallelism).pack,
            lambda model, unit: by_model[model.name, model.version].pack(unit),
        )


def _key(key: Any) -> int:
    number: int = key[0] if isinstance(key, Row | tuple) else key
    return number
