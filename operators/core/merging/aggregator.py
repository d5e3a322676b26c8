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
        wakes_at_ms: Processing-time timers to register.
        end_at_ms: Event-time timer to register or delete.
    """

    outputs: Sequence[Answer | DeadLetterRecord] = ()
    snapshot: bytes | None = None
    keep: bytes | None = None
    clears_kept: bool = False
    forgets: bool = False
    wakes_at_ms: tuple[int, ...] = ()
    end_at_ms: int | None = None


class Aggregator:
    """The windows of one task; `flush_metrics` returns the seconds until its next call, 0 for none."""

    def __init__(
        self,
        response_writer: ResponseWriter,
        policy: SchedulingPolicy,
        flush_metrics: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._response_writer = response_writer
        self._policy = policy
        self._flush_metrics = flush_metrics
        self._clock = clock

    def on_record(self, record: Buffer, snapshot: bytes | None, kept: Kept) -> WindowUpdate:
        """Apply a record to the window in state, or to a new one."""
        now_ms = self._clock()
        window = self._load(snapshot)
        if window.is_closed:
            return WindowUpdate()
        before_ms = window.next_deadline()
        kept_record, closing = window.on_record(record, now_ms)
        keep = None if kept_record is None else bytes(kept_record)
        wakes_at_ms: tuple[int, ...] = ()
        if window.next_deadline() != before_ms:
            wakes_at_ms = (ceil(window.next_deadline()),)
        # Fires at the end of a bounded input; see `TaskLoop.on_frame`.
        end_at_ms = window.opened_at_ms if snapshot is None else None
        if closing is None:
            return WindowUpdate((), window.snapshot(), keep, wakes_at_ms=wakes_at_ms, end_at_ms=end_at_ms)
        records = [bytes(each) for each in kept() or ()] + ([] if keep is None else [keep])
        outputs = answer_of(closing, records, self._response_writer)
        return WindowUpdate(
            outputs,
            window.snapshot(),
            clears_kept=True,
            wakes_at_ms=wakes_at_ms + self._count(),
            end_at_ms=end_at_ms,
        )

    def on_timer(self, at_ms: int | None, snapshot: bytes | None, kept: Kept) -> WindowUpdate:
        """Close a window at its end, or forget a closed one.

        Args:
            at_ms: Time of the timer; None at the end of a bounded input.
        """
        wakes_at_ms = () if at_ms is None else self._count()
        if snapshot is None:
            return WindowUpdate(wakes_at_ms=wakes_at_ms)
        window = self._load(snapshot)
        if at_ms is None:
            return self._expire(window, window.next_deadline(), kept)
        # The clock may have been set back.
        update = self._expire(window, max(self._clock(), at_ms), kept)
        if update.snapshot is not None:
            wakes_at_ms += (ceil(window.next_deadline()),)
        return update._replace(wakes_at_ms=wakes_at_ms)

    def _expire(self, window: Window, now_ms: float, kept: Kept) -> WindowUpdate:
        if window.is_forgotten(now_ms):
            return WindowUpdate(clears_kept=True, forgets=True, end_at_ms=window.opened_at_ms)
        closing = window.on_timer(now_ms)
        if closing is None:
            return WindowUpdate()
        outputs = answer_of(closing, [bytes(each) for each in kept() or ()], self._response_writer)
        return WindowUpdate(outputs, window.snapshot(), clears_kept=True)

    def _load(self, snapshot: bytes | None) -> Window:
        window = Window(self._policy, self._response_writer.defects)
        if snapshot is not None:
            window.restore(bytes(snapshot))
        return window

    def _count(self) -> tuple[int, ...]:
        left_s = self._flush_metrics()
        return (ceil(self._clock() + left_s * 1000),) if left_s else ()
