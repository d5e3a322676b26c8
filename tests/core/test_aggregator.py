"""Aggregator: changes of state and timers for each record and timer."""

from collections.abc import Iterable

import pytest

from anabranch.operators.core.merging.aggregator import Aggregator, WindowUpdate
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from tests.core.models import now_ms
from tests.core.test_request_window import fault, opening, part

START_MS, TIMEOUT_MS, REMEMBER_MS = 1_000.5, 100, 1_000
POLICY = SchedulingPolicy(window_timeout_ms=TIMEOUT_MS, remember_ms=REMEMBER_MS)


class StateOfWindow:
    """State and timers of one window, behind an aggregator with a clock that is set by hand."""

    def __init__(self, flush_s: float = 0.0) -> None:
        self.now_ms = START_MS
        self.window: bytes | None = None
        self.kept: list[bytes] = []
        writer = ResponseWriter("requests", 1_000_000, now_ms)
        self.aggregator = Aggregator(writer, POLICY, lambda: flush_s, lambda: self.now_ms)

    def put(self, record: bytes) -> WindowUpdate:
        return self.apply(self.aggregator.on_record(record, self.window, self.read_kept))

    def timer(self, at_ms: int) -> WindowUpdate:
        return self.apply(self.aggregator.on_timer(at_ms, self.window, self.read_kept))

    def end(self) -> WindowUpdate:
        return self.apply(self.aggregator.on_timer(None, self.window, self.read_kept))

    def read_kept(self) -> Iterable[bytes] | None:
        return self.kept or None  # Flink's empty list state

    def apply(self, update: WindowUpdate) -> WindowUpdate:
        if update.clears_kept:
            self.kept = []
        if update.keep is not None:
            self.kept.append(update.keep)
        if update.forgets:
            self.window = None
        elif update.snapshot is not None:
            self.window = update.snapshot
        return update


def kinds(update: WindowUpdate) -> list[type]:
    return [type(output) for output in update.outputs]


def test_aggregator_first_record_sets_both_timers_and_is_kept() -> None:
    update = StateOfWindow().put(opening(2))
    assert update.keep == opening(2)
    assert (update.wakes_at_ms, update.end_at_ms) == ((1_101,), 1_000)
    assert not update.outputs


def test_aggregator_opening_with_deadline_moves_the_timer_only() -> None:
    state = StateOfWindow()
    state.put(part(0, 1))
    update = state.put(opening(2, deadline_ms=1_050))
    assert (update.wakes_at_ms, update.end_at_ms) == ((1_050,), None)


def test_aggregator_duplicate_is_not_kept_and_sets_no_timer() -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.put(part(0, 1))
    update = state.put(part(0, 1))
    assert update == WindowUpdate((), update.snapshot)


@pytest.mark.parametrize("last", [part(1, 1), fault(1, 1)])
def test_aggregator_last_record_answers_and_clears_kept(last: bytes) -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.put(part(0, 1))
    state.now_ms += 10
    update = state.put(last)
    assert kinds(update) == ([Answer] if last == part(1, 1) else [Answer, DeadLetterRecord])
    assert update.wakes_at_ms == (2_011,)
    assert (update.clears_kept, update.keep, state.kept) == (True, None, [])


def test_aggregator_late_record_changes_nothing() -> None:
    state = StateOfWindow()
    state.put(opening(1))
    state.put(part(0, 1))
    assert state.put(part(0, 1)) == WindowUpdate()
    assert state.put(opening(1)) == WindowUpdate()


def test_aggregator_timer_closes_once_then_forgets() -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.now_ms = 1_101
    update = state.timer(1_101)
    assert kinds(update) == [Answer, DeadLetterRecord]
    assert update.wakes_at_ms == (2_101,)
    assert state.timer(1_101) == WindowUpdate()
    state.now_ms = 2_101
    assert state.timer(2_101) == WindowUpdate(clears_kept=True, forgets=True, end_at_ms=1_000)
    assert state.timer(2_102) == WindowUpdate()


def test_aggregator_timer_after_clock_was_set_back_closes() -> None:
    state = StateOfWindow()
    state.put(opening(1))
    state.now_ms = 1
    assert state.timer(1_100) == WindowUpdate(), "it was set for something else"
    assert kinds(state.timer(1_101)) == [Answer, DeadLetterRecord]


def test_aggregator_end_of_input_closes_then_forgets() -> None:
    state = StateOfWindow(flush_s=1.0)
    state.put(opening(1))
    update = state.end()
    assert kinds(update) == [Answer, DeadLetterRecord]
    assert update.wakes_at_ms == ()
    assert state.end().forgets
    assert state.end() == WindowUpdate()


def test_aggregator_pending_counts_set_a_timer() -> None:
    state = StateOfWindow(flush_s=0.5)
    state.put(opening(1))
    assert state.put(part(0, 1)).wakes_at_ms == (2_001, 1_501)
    assert state.timer(1_501).wakes_at_ms == (1_501,)
    state.window = None
    assert state.timer(1_501) == WindowUpdate(wakes_at_ms=(1_501,))
