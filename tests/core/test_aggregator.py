"""Aggregator: changes of state and timers for each record and timer."""

from collections.abc import Iterable

import msgspec
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
        self.timers: set[int] = set()
        self.kept: list[bytes] = []
        self._flush_s = flush_s
        self._runs = 0
        self.start()

    def start(self) -> None:
        """Starts an attempt, which finds the state of the last one."""
        self._runs += 1
        writer = ResponseWriter("requests", 1_000_000, now_ms)
        self.aggregator = Aggregator(writer, POLICY, lambda: self._flush_s, lambda: self.now_ms, run=self._runs)

    def put(self, record: bytes) -> WindowUpdate:
        return self.apply(self.aggregator.on_record(record, self.window, self.read_kept))

    def timer(self, at_ms: int) -> WindowUpdate:
        self.timers.discard(at_ms)
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
        if update.cancel_at_ms is not None:
            self.timers.remove(update.cancel_at_ms)
        if update.wake_at_ms is not None:
            self.timers.add(update.wake_at_ms)
        assert len(self.timers) == (self.window is not None), "each window has one timer"
        return update


@pytest.mark.parametrize("repeated", [(opening(2),), (part(0, 1), opening(2)), (opening(2), part(1, 1))])
def test_records_repeated_after_a_restart_open_no_window(repeated: tuple[bytes, ...]) -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.put(part(0, 1))
    state.start()
    assert kinds(state.put(part(1, 1))) == [Answer]
    for record in repeated:
        assert state.put(record).outputs == ()
    state.now_ms += TIMEOUT_MS
    assert [state.timer(at_ms).outputs for at_ms in sorted(state.timers) if at_ms <= state.now_ms] == []
    assert state.window is not None
    state.now_ms = START_MS + REMEMBER_MS + 1
    [at_ms] = state.timers
    assert state.timer(at_ms).outputs == ()
    assert state.window is None


def test_window_of_one_attempt_is_forgotten_at_once() -> None:
    state = StateOfWindow()
    state.start()
    for record in (opening(2), part(1, 1), part(0, 1)):
        state.put(record)
    assert state.window is None


def kinds(update: WindowUpdate) -> list[type]:
    return [type(output) for output in update.outputs]


def test_aggregator_first_record_sets_both_timers_and_is_kept() -> None:
    update = StateOfWindow().put(opening(2))
    assert update.keep == opening(2)
    assert (update.wake_at_ms, update.cancel_at_ms, update.end_at_ms) == (1_101, None, 1_000)
    assert not update.outputs


def test_aggregator_opening_with_deadline_moves_the_timer_only() -> None:
    state = StateOfWindow()
    state.put(part(0, 1))
    update = state.put(opening(2, deadline_ms=1_050))
    assert (update.wake_at_ms, update.cancel_at_ms, update.end_at_ms) == (1_050, 1_101, None)


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
    assert (update.clears_kept, update.keep, state.kept) == (True, None, [])
    assert (update.forgets, update.cancel_at_ms, update.end_at_ms) == (True, 1_101, 1_000)
    assert (state.window, state.timers) == (None, set())


def test_aggregator_early_closing_waits_for_other_rows() -> None:
    state = StateOfWindow()
    state.put(opening(3))
    update = state.put(fault(1, 1))
    assert kinds(update) == [Answer, DeadLetterRecord]
    assert (update.wake_at_ms, update.cancel_at_ms, update.forgets) == (2_001, 1_101, False)
    update = state.put(part(0, 1))
    assert update == WindowUpdate(snapshot=state.window)
    update = state.put(fault(2, 1))
    assert update == WindowUpdate(clears_kept=True, forgets=True, cancel_at_ms=2_001, end_at_ms=1_000)


def test_aggregator_late_record_changes_nothing() -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.put(fault(0, 1))
    for late in (fault(0, 1), part(0, 1), opening(2), b"", b"\xff" * 100):
        assert state.put(late) == WindowUpdate()
    assert (len(state.timers), state.kept) == (1, [])


def test_aggregator_windows_leave_nothing_behind() -> None:
    day_ms = 86_400_000
    for number in range(1000):
        state = StateOfWindow(flush_s=0.5)
        for record in (opening(2, deadline_ms=day_ms + number), part(1, 1), part(0, 1)):
            state.put(record)
        assert (state.window, state.kept, state.timers) == (None, [], set())


def test_aggregator_closed_window_of_old_state_is_forgotten() -> None:
    state = StateOfWindow()
    state.window = b"\x02" + msgspec.msgpack.encode([2_001.0, True, 0, 0, False, [], [], None, 1_000, [], 1])
    state.timers = {2_001}
    assert state.put(part(0, 1)).outputs == ()
    state.now_ms = 2_001
    assert state.timer(2_001) == WindowUpdate(clears_kept=True, forgets=True, end_at_ms=1_000)


def test_aggregator_timer_closes_once_then_forgets() -> None:
    state = StateOfWindow()
    state.put(opening(2))
    state.now_ms = 1_101
    update = state.timer(1_101)
    assert kinds(update) == [Answer, DeadLetterRecord]
    assert (update.wake_at_ms, update.cancel_at_ms) == (2_101, None)
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
    assert (update.wake_at_ms, update.count_at_ms, update.cancel_at_ms) == (None, None, 1_101)
    assert (update.forgets, state.timers) == (True, set())
    assert state.end() == WindowUpdate()


def test_aggregator_pending_counts_set_a_timer() -> None:
    state = StateOfWindow(flush_s=0.5)
    state.put(opening(1))
    assert state.put(part(0, 1)).count_at_ms == 1_501
    state.now_ms = 1_501
    assert state.timer(1_501) == WindowUpdate(count_at_ms=2_001)


def test_aggregator_pending_counts_set_one_timer_for_all_windows() -> None:
    state, timers = StateOfWindow(flush_s=1.0), []
    for number in range(1000):
        state.now_ms = START_MS + number
        state.put(opening(1))
        timers.append(state.put(part(0, 1)).count_at_ms)
    assert [at_ms for at_ms in timers if at_ms is not None] == [2_001]
