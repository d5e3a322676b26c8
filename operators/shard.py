"""Flink shell of `core.sharding`: what waits is in keyed state; memory only mirrors it.

A lane's state is a list of REQUEST records. Its mirror is a `Sharding`, rebuilt from state when the lane is first seen:
after a failure, and for lanes of other tasks that a rescale left here, which their timers drain.
"""

from collections.abc import Iterator
from math import ceil
from time import monotonic, time

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import ListStateDescriptor

from operators.core.lanes import lane_of
from operators.core.sharding import Emission, Sharding
from operators.task import task_of
from schemas.model import Catalog


class ShardFunction(KeyedProcessFunction):
    """Row(lane, REQUEST or REJECTION) -> UNIT, SHARD, OPENING and REJECTION records."""

    def __init__(
        self, catalog: Catalog, default_priority: int, idle_gap_ms: float, keys_by_group: tuple[int, ...]
    ) -> None:
        self._catalog = catalog
        self._default_priority = default_priority
        self._idle_gap_ms = idle_gap_ms
        self._keys_by_group = keys_by_group

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the state of waiting requests."""
        task = task_of(runtime_context)
        self._lane = lane_of(task.index, task.parallelism, self._keys_by_group)
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_list_state(ListStateDescriptor("waiting", Types.PICKLED_BYTE_ARRAY()))
        self._mirror: Sharding | None = None
        self._wakes_at_ms = 0
        self._last_exit_s = 0.0

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        """Takes one request of this task's own lane in."""
        now_ms = time() * 1000
        idle_ms = (monotonic() - self._last_exit_s) * 1000
        mirror = self._mirror
        if mirror is None:
            mirror = self._mirror = self._restore(now_ms)
            # A bounded input ends with timers of the wall clock still pending. Its only watermark, the last, fires this
            # one; what is emitted then bears the timer's time, which must be one that Kafka takes.
            ctx.timer_service().register_event_time_timer(int(now_ms))
        emission = mirror.on_record(value, now_ms, idle_ms)
        if emission.kept:
            self._waiting.add(value)
        self._save(mirror, emission)
        self._wake(mirror, ctx)
        yield from emission.records
        self._last_exit_s = monotonic()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[bytes]:
        """Lets go what is due: of this task's own lane, or all that a lane of another task left here."""
        now_ms = time() * 1000
        own = _key(ctx.get_current_key()) == self._lane
        if own and self._mirror is not None:
            mirror = self._mirror
        else:
            mirror = self._restore(now_ms)
            if own:
                self._mirror = mirror
        ended = ctx.time_domain() == TimeDomain.EVENT_TIME
        emission = mirror.flush(now_ms) if ended or not own else mirror.on_timer(now_ms)
        if own and not ended:
            self._wakes_at_ms = 0
            self._wake(mirror, ctx)
        if emission.records:
            self._save(mirror, emission)
        yield from emission.records
        self._last_exit_s = monotonic()

    def _restore(self, now_ms: float) -> Sharding:
        sharding = Sharding(self._catalog, self._default_priority, self._idle_gap_ms)
        sharding.restore([bytes(encoded) for encoded in self._waiting.get() or ()], now_ms)
        return sharding

    def _save(self, mirror: Sharding, emission: Emission) -> None:
        if emission.drained:
            left = mirror.snapshot()
            if left:
                self._waiting.update(left)
            else:
                self._waiting.clear()

    def _wake(self, mirror: Sharding, ctx: KeyedProcessFunction.Context) -> None:
        if self._wakes_at_ms:
            return
        due_ms = mirror.next_deadline()
        if due_ms is not None:
            self._wakes_at_ms = ceil(due_ms)
            ctx.timer_service().register_processing_time_timer(self._wakes_at_ms)


def _key(key: object) -> object:
    return key[0] if isinstance(key, Row | tuple) else key
