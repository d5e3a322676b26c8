"""The scheduler of one task: batches, reading, wake-ups and state.

    frame --> on_frame --+                            +--> outputs of each batch
    timer --> on_timer --+--> batches for one slice --+--> `Settlement`: state changes, timers
    end   --> on_end   --+

The caller carries out each action before it takes the next one, so the loop measures how long the exchange blocks. A
busy task runs batches for `work_slice_ms`, then sets a timer, so that requests and checkpoints get their turn. So
do queues that a rescale left with the task. A slow batch runs beside the loop; until its answers are emitted, its
requests are in state.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from math import ceil
from typing import NamedTuple, Protocol, TypeAlias

from anabranch.operators.core.outputs import Answer, Offload, Output
from anabranch.operators.core.scheduling.batch_queue import BatchQueue, QueueChanges, begun_key
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.schemas.frames import write_begun, write_waiting
from anabranch.schemas.tensors import Buffer

#: Wait of a full task for readers.
_WAIT_MS = 10.0
LATE_MS = 10.0


class Settlement(NamedTuple):
    """Changes of state and timers, at the end of a call.

    Attributes:
        arrived: Number and frame of each request to store.
        departed: Numbers of requests to remove.
        wake_at_ms: Next processing-time timer.
        end_at_ms: Event-time timer.
    """

    arrived: list[tuple[int, bytes]]
    departed: list[int]
    wake_at_ms: int | None = None
    end_at_ms: int | None = None


Action: TypeAlias = list[Output] | Settlement


class BatchExclusion(Protocol):
    """Mutual exclusion with offloaded batches of other tasks."""

    def own_batch(self) -> AbstractContextManager[None]:
        """Guard a batch of the own task, which is busy from then on."""

    def idle(self) -> AbstractContextManager[None]:
        """Let offloaded batches run meanwhile."""

    def rest(self) -> None:
        """End the own work."""


class ReturnedTickets(Protocol):
    """Tickets of finished records."""

    def collect(self) -> bool:
        """Take them back; return False for none."""

    def wait(self, timeout_ms: float) -> bool:
        """Wait for some; return False if none came for long."""


class _ForeignQueue:
    """A queue that another task left, and the time of its only valid timer."""

    __slots__ = ("queue", "wakes_at_ms")

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue
        self.wakes_at_ms: int | None = None


class TaskLoop:
    """The scheduler of one task.

    Args:
        key: Own key of the task; see `key_groups`.
        held: Reads number and frame of all requests of the current key.
        flush_metrics: Hands counts over; returns the seconds until its next call, 0 for none.
        balancers: Select batches for other tasks.
        tickets: Make room at other tasks.
        late_ms: Time after which a timer is not waited for.
    """

    def __init__(
        self,
        key: int,
        pipeline: RequestPipeline,
        held: Callable[[], Iterable[tuple[int, bytes]]],
        exclusion: BatchExclusion,
        flush_metrics: Callable[[], float],
        clock: Callable[[], float],
        policy: SchedulingPolicy,
        balancers: LaneBalancers | None = None,
        tickets: ReturnedTickets | None = None,
        late_ms: float = LATE_MS,
    ) -> None:
        self._key = key
        self._late_ms = late_ms
        self._tickets = tickets
        self._pipeline = pipeline
        self._held = held
        self._exclusion = exclusion
        self._flush_metrics = flush_metrics
        self._clock = clock
        self._work_slice_ms = policy.work_slice_ms
        self._balancers = balancers
        self._own: BatchQueue | None = None
        self._foreign: dict[int, _ForeignQueue] = {}
        self._wakes_at_ms: int | None = None
        self._came_in = False

    def on_frame(self, frame: Buffer) -> Iterator[Action]:
        """Take requests of the own key; work unless a timer is due."""
        now_ms = self._clock()
        self._came_in = True
        own, end_at_ms = self._own, None
        if own is None:
            own = self._own = self._pipeline.new_queue()
            yield from self._emit(self._pipeline.restore(self._held(), own, now_ms))
            # Kafka takes this time as the timestamp of outputs.
            end_at_ms = int(now_ms)
        outputs = self._pipeline.admit(frame, own, now_ms)
        if outputs:
            yield from self._emit(outputs)
        # With a timer due, read all requests first.
        if self._wakes_at_ms is None or self._wakes_at_ms > now_ms or own.is_full or self._is_late(own, now_ms):
            yield from self._work(own)
        yield from self._settle_own(own, end_at_ms=end_at_ms)

    def _is_late(self, own: BatchQueue, now_ms: float) -> bool:
        """Tell whether a timer keeps requests waiting that take longer to store than to run."""
        late_ms = now_ms - (self._wakes_at_ms or now_ms)
        return late_ms > self._late_ms and (own.backlog_ms <= self._work_slice_ms or own.is_cheap)

    def on_timer(self, key: int, at_ms: int) -> Iterator[Action]:
        """Continue with the own key, or with one that a rescale left."""
        if key != self._key:
            yield from self._continue_foreign(key, at_ms)
            return
        # Superseded timers would multiply.
        if self._wakes_at_ms not in (None, at_ms):
            return
        self._wakes_at_ms = None
        own = self._own
        if own is None:
            own = self._own = self._pipeline.new_queue()
            yield from self._emit(self._pipeline.restore(self._held(), own, self._clock()))
        is_quiet, self._came_in = not self._came_in, False
        yield from self._work(own)
        yield from self._settle_own(own, at_once=is_quiet)

    def on_end(self, key: int) -> Iterator[Action]:
        """Run all queued requests of a key."""
        return self._drain(key)

    def _drain(self, key: int) -> Iterator[Action]:
        is_own = key == self._key
        foreign = self._foreign.pop(key, None)
        queue = self._own if is_own else None
        if foreign is not None:
            queue = foreign.queue
        if queue is None:
            queue = self._pipeline.new_queue()
            yield from self._emit(self._pipeline.restore(self._held(), queue, self._clock()))
            if is_own:
                self._own = queue
        while True:
            outputs = self._pipeline.run_next(queue, self._clock(), all_is_due=True)
            if outputs is not None:
                yield outputs
            elif not self._pipeline.await_slow(queue):
                break
        departed = queue.settle().departed
        if departed:
            yield Settlement([], departed)
        if is_own:
            self._exclusion.rest()

    def _continue_foreign(self, key: int, at_ms: int) -> Iterator[Action]:
        foreign = self._foreign.get(key)
        if foreign is None:
            # Restoring takes time of its own; batches run in the next call.
            foreign = self._foreign[key] = _ForeignQueue(self._pipeline.new_queue())
            yield from self._emit(self._pipeline.restore(self._held(), foreign.queue, self._clock()))
        elif foreign.wakes_at_ms != at_ms:
            return
        else:
            yield from self._work(foreign.queue)
        due_ms, changes = foreign.queue.next_deadline(), foreign.queue.settle()
        foreign.wakes_at_ms = None if due_ms is None else max(ceil(due_ms), int(self._clock()))
        if due_ms is None:
            del self._foreign[key]
        self._flush_metrics()
        if changes.departed or due_ms is not None:
            yield Settlement(_stored(changes), changes.departed, foreign.wakes_at_ms)

    def _work(self, queue: BatchQueue) -> Iterator[Action]:
        clock, run_next, balancers, own = self._clock, self._pipeline.run_next, self._balancers, self._own
        tickets = self._tickets
        stop_ms = clock() + self._work_slice_ms
        while True:
            if tickets is not None:
                tickets.collect()
            with self._exclusion.own_batch():
                # Read under the lock, for which the task may wait.
                began_ms = clock()
                outputs = run_next(queue, began_ms, balancers)
            if outputs is None:
                if self._await_room(queue):
                    continue
                break
            yield from self._emit(outputs, queue)
            now_ms = clock()
            # Another batch would exceed the slice. A full task must not read.
            if 2 * now_ms - began_ms >= stop_ms and not (queue is own and queue.is_full):
                break
        if queue.next_deadline() != 0 and (queue is own or own is None or own.next_deadline() != 0):
            self._exclusion.rest()

    def _await_room(self, queue: BatchQueue) -> bool:
        """Wait a moment if a full task waits for a slow batch or readers."""
        if queue is not self._own or not queue.is_full:
            return False
        with self._exclusion.idle():
            if self._tickets is None or not queue.awaits_readers:
                return self._pipeline.await_slow(queue)
            # In process mode, records leave after the call.
            if not self._tickets.wait(_WAIT_MS):
                queue.let_pass()
            return True

    def _emit(self, outputs: list[Output], queue: BatchQueue | None = None) -> Iterator[Action]:
        if not outputs:
            return
        if type(outputs[0]) is Answer:
            yield outputs
            return
        # Offloaded batches may run while the exchange blocks.
        began_ms = self._clock()
        with self._exclusion.idle():
            yield outputs
        now_ms = self._clock()
        if not isinstance(outputs[0], Offload):
            if queue is not None:
                queue.note_blocked(now_ms - began_ms)
        elif self._balancers is not None:
            self._balancers.note_wait(now_ms - began_ms, now_ms)

    def _settle_own(self, own: BatchQueue, *, at_once: bool = False, end_at_ms: int | None = None) -> Iterator[Action]:
        changes = own.settle()
        wake_at_ms = self._next_wake_up(own.next_deadline(), at_once=at_once)
        if changes.arrived or changes.departed or changes.begun or wake_at_ms is not None or end_at_ms is not None:
            yield Settlement(_stored(changes), changes.departed, wake_at_ms, end_at_ms)

    def _next_wake_up(self, due_ms: float | None, *, at_once: bool) -> int | None:
        now_ms = self._clock()
        counts_in_s = self._flush_metrics()
        if counts_in_s:
            counts_at_ms = now_ms + counts_in_s * 1000
            due_ms = counts_at_ms if due_ms is None else min(due_ms, counts_at_ms)
        if due_ms is None:
            return None
        # Only a timer in the past fires immediately. Under load, 1 ms helps the fetching threads (ADR 0016).
        wake_at_ms = max(ceil(due_ms), int(now_ms) - at_once)
        if self._wakes_at_ms is not None and wake_at_ms >= self._wakes_at_ms:
            return None
        self._wakes_at_ms = wake_at_ms
        return wake_at_ms


def _stored(changes: QueueChanges) -> list[tuple[int, bytes]]:
    stored = [(each.number, write_waiting(each.original, each.source)) for each in changes.arrived]
    if changes.begun:
        stored += [
            (begun_key(each.number), write_begun(each.split.rows)) for each in changes.begun if each.split is not None
        ]
    return stored
