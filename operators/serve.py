"""Flink shell of `core.chain`: what waits is in keyed state; memory only mirrors it.

A lane's state maps numbers of waiting requests to their bytes. Its mirror, a `TaskLoop`, is rebuilt from
state when the lane is first seen: after a failure, and for lanes of other tasks that a rescale left here, which their
timers drain.

A call works for `work_slice_ms` at most and leaves the rest to a timer: meanwhile the task reads what came in, which
may be more urgent, and takes part in checkpoints. State is told only of what still waits then: an idle task never
touches it.
"""

from collections.abc import Iterator
from math import ceil
from time import time

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import MapStateDescriptor

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.outputs import Offload, Output
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_queue import UrgencyOrder
from anabranch.operators.core.scheduling.key_groups import lane_of
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import TaskLoop
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.runtime.task_lock import lock_of
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.transport.endpoints import AGGREGATE, INFER, Sender, stage_receiver
from anabranch.operators.transport.frame_memory import open_frame
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import Record

_NEVER = float("inf")


class ServeFunction(KeyedProcessFunction):
    """Row(lane, frame of Kafka records) -> frames of answers; on the side letters, parts, work for other tasks."""

    def __init__(
        self,
        catalog: Catalog,
        backend: Backend,
        response_writer: ResponseWriter,
        *,
        max_message_bytes: int,
        default_priority: int,
        order: UrgencyOrder,
        work_slice_ms: float,
        max_waiting_bytes: int,
        max_backlog_ms: float | None,
        keys_by_group: tuple[int, ...],
        exchange: TransportOptions,
        offload_backlog_ms: float | None,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._response_writer = response_writer
        self._max_message_bytes = max_message_bytes
        self._default_priority = default_priority
        self._order = order
        self._work_slice_ms = work_slice_ms
        self._max_waiting_bytes = max_waiting_bytes
        self._max_backlog_ms = max_backlog_ms
        self._keys_by_group = keys_by_group
        self._exchange = exchange
        self._offload_backlog_ms = offload_backlog_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the state of waiting requests; loads every model and warms it up, before the first request."""
        task = task_context_of(runtime_context)
        self._lane = lane_of(task.index, task.parallelism, self._keys_by_group)
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        self._mirror: TaskLoop | None = None
        self._wakes_at_ms: int | None = None
        self._came_in = False
        self._turn = lock_of(self._exchange.job, task.index)
        self._turn.lane_is_busy = False
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
        self._admission = Admission(self._catalog, self._max_message_bytes, self._default_priority)
        self._serving = InferenceTask(self._catalog, sessions.session_of, self._response_writer, task.index)

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        """Takes requests of this task's own lane in, and works."""
        now_ms = time() * 1000
        self._came_in = True
        mirror = self._mirror
        if mirror is None:
            mirror = self._mirror = self._chain()
            yield from emit(mirror.restore(self._held(), now_ms))
            # A bounded input ends with timers of the wall clock still pending. Its only watermark, the last, fires this
            # one; what is emitted then bears the timer's time, which must be one that Kafka takes.
            ctx.timer_service().register_event_time_timer(int(now_ms))
        yield from emit(mirror.on_frame(open_frame(value), now_ms))
        # Where a timer is due, it works on once the source has had its turn: then all that came in is there to choose
        # from.
        if self._wakes_at_ms is None or self._wakes_at_ms > now_ms or mirror.is_full:
            yield from self._work(mirror)
        self._save(mirror)
        self._wake(mirror, ctx)
        self._defect_log.report()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[object]:
        """Goes on: with this task's own lane, or with all that a lane of another task left here."""
        own = _key(ctx.get_current_key()) == self._lane
        if own and ctx.time_domain() == TimeDomain.PROCESSING_TIME:
            # An earlier one took its place. If both worked, each would set a next one, and their number only ever grow.
            if self._wakes_at_ms not in (None, timestamp):
                return
            self._wakes_at_ms = None
        mirror = self._mirror if own else None
        if mirror is None:
            mirror = self._chain()
            yield from emit(mirror.restore(self._held(), time() * 1000))
            if own:
                self._mirror = mirror
        if own and ctx.time_domain() == TimeDomain.PROCESSING_TIME:
            is_quiet, self._came_in = not self._came_in, False
            yield from self._work(mirror)
            self._save(mirror)
            self._wake(mirror, ctx, at_once=is_quiet)
        else:
            while (outputs := mirror.next(time() * 1000, all_is_due=True)) is not None:
                yield from emit(outputs)
            self._save(mirror)
            if own:
                self._turn.lane_is_busy = False
        self._defect_log.report()

    def _work(self, mirror: TaskLoop) -> Iterator[object]:
        stop_ms = time() * 1000 + self._work_slice_ms
        self._turn.lane_is_busy = True
        while True:
            with self._turn.of_lane():
                # Only now: what has expired while a batch of others ran is not to be run.
                began_ms = time() * 1000
                outputs = mirror.next(began_ms)
            if outputs is None:
                break
            if outputs and isinstance(outputs[0], Offload):
                yield from self._give(outputs, mirror)
            else:
                yield from emit(outputs)
            now_ms = time() * 1000
            # Another batch like this one would take longer than the slice. (With too much in hand, Kafka has to keep
            # the rest: nothing is read meanwhile.)
            if 2 * now_ms - began_ms >= stop_ms and not mirror.is_full:
                break
        self._turn.lane_is_busy = mirror.next_deadline() == 0

    def _give(self, outputs: list[Output], mirror: TaskLoop) -> Iterator[object]:
        # Where the exchange is full this waits, and the requests of others have their turn. (In process mode what
        # leaves waits outside of Python, and nothing is learned.)
        self._turn.lane_is_busy = False
        began_ms = time() * 1000
        yield from emit(outputs)
        if self._task.in_jvm:
            now_ms = time() * 1000
            mirror.note_wait(now_ms - began_ms, now_ms)
        self._turn.lane_is_busy = True

    def _chain(self) -> TaskLoop:
        return TaskLoop(
            self._admission,
            Router(
                self._catalog,
                self._sessions.costs_of,
                self._order,
                self._outbox.pack,
                self._openings.pack,
                self._pack_unit,
            ),
            self._serving,
            self._response_writer,
            max_backlog_ms=self._max_backlog_ms,
            max_waiting_bytes=self._max_waiting_bytes,
            offloading=self._offloading(),
        )

    def _pack_unit(self, model: ModelSpec, unit: Record) -> bytes:
        return self._unit_outboxes[model.name, model.version].pack(unit)

    def _offloading(self) -> LoadBalancer | None:
        if self._offload_backlog_ms is None or self._task.parallelism == 1:
            return None
        return LoadBalancer(self._task.parallelism, self._offload_backlog_ms, learns=self._task.in_jvm)

    def _held(self) -> Iterator[tuple[int, bytes]]:
        return ((number, bytes(frame)) for number, frame in self._waiting.items())

    def _save(self, mirror: TaskLoop) -> None:
        changes = mirror.settle()
        for number in changes.departed:
            self._waiting.remove(number)
        for number, frame in changes.arrived:
            self._waiting.put(number, frame)

    def _wake(self, mirror: TaskLoop, ctx: KeyedProcessFunction.Context, *, at_once: bool = False) -> None:
        due_ms, now_ms = mirror.next_deadline(), time() * 1000
        counts_in_s = self._metrics.flush()
        if counts_in_s:
            due_ms = min(now_ms + counts_in_s * 1000, _NEVER if due_ms is None else due_ms)
        if due_ms is None:
            return
        # A timer for this very millisecond or a later one fires a millisecond late. While requests come in, that brings
        # them here soon: on few cores, who brings them has no other time to run. One of the past fires at once.
        wake_at_ms = max(ceil(due_ms), int(now_ms) - at_once)
        if self._wakes_at_ms is None or wake_at_ms < self._wakes_at_ms:
            self._wakes_at_ms = wake_at_ms
            ctx.timer_service().register_processing_time_timer(wake_at_ms)


def _key(key: object) -> object:
    return key[0] if isinstance(key, Row | tuple) else key
