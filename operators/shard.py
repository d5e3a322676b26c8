"""Flink shell of `core.sharding`: what waits is in keyed state; memory only mirrors it.

A lane's state maps the number of each waiting request to its REQUEST record. Its mirror is a `Sharding`, rebuilt from
state when the lane is first seen: after a failure, and for lanes of other tasks that a rescale left here, which their
timers drain.

The units that a call emits are run before the next is asked for, since Flink chains the inference task to this one.
So a call works for `work_slice_ms` at most and leaves the rest to a timer: meanwhile the task reads what came in, which
may be more urgent, and takes part in checkpoints. State is told only of what still waits then: an idle task never
touches it.
"""

from collections.abc import Iterator
from math import ceil
from time import monotonic, time

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import MapStateDescriptor

from operators.core.lanes import lane_of
from operators.core.sharding import Sharding
from operators.task import task_of
from schemas.model import Catalog


class ShardFunction(KeyedProcessFunction):
    """Row(lane, frame of REQUEST and REJECTION) -> UNIT, SHARD, OPENING and REJECTION records."""

    def __init__(
        self,
        catalog: Catalog,
        default_priority: int,
        work_slice_ms: float,
        max_waiting_bytes: int,
        keys_by_group: tuple[int, ...],
    ) -> None:
        self._catalog = catalog
        self._default_priority = default_priority
        self._work_slice_ms = work_slice_ms
        self._max_waiting_bytes = max_waiting_bytes
        self._keys_by_group = keys_by_group

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the state of waiting requests."""
        task = task_of(runtime_context)
        self._lane = lane_of(task.index, task.parallelism, self._keys_by_group)
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        self._mirror: Sharding | None = None
        self._wakes_at_ms: int | None = None

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        """Takes requests of this task's own lane in, and works."""
        now_ms = time() * 1000
        mirror = self._mirror
        if mirror is None:
            mirror = self._mirror = self._restore()
            # A bounded input ends with timers of the wall clock still pending. Its only watermark, the last, fires this
            # one; what is emitted then bears the timer's time, which must be one that Kafka takes.
            ctx.timer_service().register_event_time_timer(int(now_ms))
        yield from mirror.on_frame(value, now_ms)
        yield from self._work(mirror)
        self._save(mirror)
        self._wake(mirror, ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[bytes]:
        """Goes on: with this task's own lane, or with all that a lane of another task left here."""
        own = _key(ctx.get_current_key()) == self._lane
        mirror = self._mirror if own else None
        if mirror is None:
            mirror = self._restore()
            if own:
                self._mirror = mirror
        if own and ctx.time_domain() == TimeDomain.PROCESSING_TIME:
            self._wakes_at_ms = None
            yield from self._work(mirror)
            self._save(mirror)
            self._wake(mirror, ctx)
        else:
            while (records := mirror.next(time() * 1000, all_is_due=True)) is not None:
                yield from records
            self._save(mirror)

    def _work(self, mirror: Sharding) -> Iterator[bytes]:
        stop_s = monotonic() + self._work_slice_ms / 1000
        while (records := mirror.next(time() * 1000)) is not None:
            yield from records
            # With too much in hand, Kafka has to keep the rest: nothing is read meanwhile.
            if monotonic() >= stop_s and mirror.waiting_size_bytes <= self._max_waiting_bytes:
                return

    def _restore(self) -> Sharding:
        sharding = Sharding(self._catalog, self._default_priority)
        sharding.restore(((number, bytes(encoded)) for number, encoded in self._waiting.items()))
        return sharding

    def _save(self, mirror: Sharding) -> None:
        changes = mirror.settle()
        for number in changes.departed:
            self._waiting.remove(number)
        for number, encoded in changes.arrived:
            self._waiting.put(number, encoded)

    def _wake(self, mirror: Sharding, ctx: KeyedProcessFunction.Context) -> None:
        due_ms = mirror.next_deadline()
        if due_ms is None:
            return
        wake_at_ms = max(ceil(due_ms), int(time() * 1000))
        if self._wakes_at_ms is None or wake_at_ms < self._wakes_at_ms:
            self._wakes_at_ms = wake_at_ms
            ctx.timer_service().register_processing_time_timer(wake_at_ms)


def _key(key: object) -> object:
    return key[0] if isinstance(key, Row | tuple) else key
