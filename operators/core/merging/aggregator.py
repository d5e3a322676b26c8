"""Applies records and timers to the windows of a task.

The caller reads state before a call, and applies the `WindowUpdate` after it.
"""

from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import NamedTuple, TypeAlias

from anabranch.operators.core.merging.request_window import Window, answer_of
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.tensors import Buffer

#: Reads the kept records.
Kept: TypeAlias = Callable[[], Iterable[bytes] | None]


class WindowUpdate(NamedTuple):
    """Changes for the caller to apply.

    Attributes:
        snapshot: Window to write to state.
        keep: Record to add to the kept ones.
        clears_kept: True to remove the kept records.
        forgets: True to remove the window.
        wake_at_ms: Timer of the window to register, in processing time; it is the only one of the window.
        cancel_at_ms: Earlier timer of the window to delete.
        count_at_ms: Timer of the task to register, for its counts.
        end_at_ms: Event-time timer to register, or to delete with the window.
    """

    outputs: Sequence[Answer | DeadLetterRecord] = ()
    snapshot: bytes | None = None
    keep: bytes | None = None
    clears_kept: bool = False
    forgets: bool = False
    wake_at_ms: int | None = None
    cancel_at_ms: int | None = None
    count_at_ms: int | None = None
    end_at_ms: int | None = None


class Aggregator:
    """The windows of one task.

    Args:
        flush_metrics: Returns the seconds until its next call, 0 for none.
        run: Unique number of the attempt.
    """

    def __init__(
        self,
        response_writer: ResponseWriter,
        policy: SchedulingPolicy,
        flush_metrics: Callable[[], float],
        clock: Callable[[], float],
        run: int,
    ) -> None:
        self._run = run
        self._response_writer = response_writer
        self._policy = policy
        self._flush_metrics = flush_metrics
        self._clock = clock
        self._counts_at_ms = 0

    def on_record(self, record: Buffer, snapshot: bytes | None, kept: Kept) -> WindowUpdate:
        """Apply a record to the window in state, or to a new one."""
        now_ms = self._clock()
        window = self._load(snapshot)
        was_closed = window.is_closed
        before_at_ms = None if snapshot is None else ceil(window.next_deadline())
        kept_record, closing = window.on_record(record, now_ms)
        if was_closed:
            return self._after_late_record(window, snapshot, before_at_ms)
        keep = None if kept_record is None else bytes(kept_record)
        update = WindowUpdate(
            snapshot=window.snapshot(),
            keep=keep,
            # Fires at the end of a bounded input; see `TaskLoop.on_frame`.
            end_at_ms=window.opened_at_ms if snapshot is None else None,
        )
        if closing is not None:
            records = [bytes(each) for each in kept() or ()] + ([] if keep is None else [keep])
            outputs = answer_of(closing, records, self._response_writer)
            update = update._replace(outputs=outputs, keep=None, clears_kept=True, count_at_ms=self._count())
            if window.is_forgotten(now_ms):
                return _forget(window, before_at_ms, update)
        return _move_timer(window, before_at_ms, update)

    def on_timer(self, at_ms: int | None, snapshot: bytes | None, kept: Kept) -> WindowUpdate:
        """Close a window at its end, or forget a closed one.

        Args:
            at_ms: Time of the timer; None at the end of a bounded input, after which nothing comes.
        """
        count_at_ms = None if at_ms is None else self._count()
        if snapshot is None:
            return WindowUpdate(count_at_ms=count_at_ms)
        window = self._load(snapshot)
        timer_at_ms = ceil(window.next_deadline())
        # The clock may have been set back.
        now_ms = window.next_deadline() if at_ms is None else max(self._clock(), at_ms)
        closing = None if window.is_forgotten(now_ms) else window.on_timer(now_ms)
        outputs: Sequence[Answer | DeadLetterRecord] = ()
        if closing is not None:
            outputs = answer_of(closing, [bytes(each) for each in kept() or ()], self._response_writer)
        before_at_ms = None if at_ms is not None and timer_at_ms <= at_ms else timer_at_ms  # It may have fired.
        update = WindowUpdate(outputs, count_at_ms=count_at_ms)
        if at_ms is None or window.is_forgotten(now_ms):
            return _forget(window, before_at_ms, update)
        if closing is None:
            return update
        return _move_timer(window, before_at_ms, update._replace(snapshot=window.snapshot(), clears_kept=True))

    def _after_late_record(self, window: Window, snapshot: bytes | None, before_at_ms: int | None) -> WindowUpdate:
        if window.is_forgotten(self._clock()):
            return _forget(window, before_at_ms, WindowUpdate())
        after = window.snapshot()
        return WindowUpdate() if after == snapshot else WindowUpdate(snapshot=after)

    def _load(self, snapshot: bytes | None) -> Window:
        window = Window(self._policy, self._response_writer.defects, self._run)
        if snapshot is not None:
            window.restore(bytes(snapshot))
        return window

    def _count(self) -> int | None:
        """Hand counts over; return the time of a timer for others, unless one is pending."""
        left_s = self._flush_metrics()
        if not left_s or self._counts_at_ms > self._clock():
            return None
        self._counts_at_ms = ceil(self._clock() + left_s * 1000)
        return self._counts_at_ms


def _move_timer(window: Window, before_at_ms: int | None, update: WindowUpdate) -> WindowUpdate:
    at_ms = ceil(window.next_deadline())
    return update if at_ms == before_at_ms else update._replace(wake_at_ms=at_ms, cancel_at_ms=before_at_ms)


def _forget(window: Window, before_at_ms: int | None, update: WindowUpdate) -> WindowUpdate:
    return update._replace(
        snapshot=None, clears_kept=True, forgets=True, cancel_at_ms=before_at_ms, end_at_ms=window.opened_at_ms
    )
