"""Tests that need no engine catch planted defects; `test_round_trip` has those that the simulator sees."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from anabranch.operators.core.merging.aggregator import Aggregator
from anabranch.operators.core.merging.request_window import Window
from tests.core import test_aggregator
from tests.planted import both, mutated

#: The defect, and the test that has to fail.
PLANTED: dict[str, tuple[AbstractContextManager[Any], Callable[[], None]]] = {
    "late record is counted": (
        both(
            mutated(Aggregator, "on_record", "window.is_closed", "False"),
            mutated(Window, "on_record", "state.closed", "False"),
        ),
        test_aggregator.test_late_record_changes_nothing,
    ),
    "event-time timer is not registered": (
        mutated(Aggregator, "on_record", "snapshot is None", "False"),
        test_aggregator.test_first_record_sets_both_timers_and_is_kept,
    ),
    "end of input closes no window": (
        mutated(Aggregator, "on_timer", "self._expire(window, window.next_deadline(), kept)", "WindowUpdate()"),
        test_aggregator.test_end_of_input_closes_then_forgets_without_timers,
    ),
    "clock that was set back keeps a window open": (
        mutated(Aggregator, "on_timer", "max(self._clock(), at_ms)", "self._clock()"),
        test_aggregator.test_timer_after_clock_was_set_back_closes,
    ),
    "pending counts of windows set no timer": (
        mutated(Aggregator, "_count", "if left_s", "if False"),
        test_aggregator.test_pending_counts_set_a_timer,
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_is_caught(defect: str) -> None:
    plant, caught_by = PLANTED[defect]
    caught_by()
    with plant, pytest.raises((AssertionError, TypeError)):
        caught_by()
