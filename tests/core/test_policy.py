"""SchedulingPolicy: bounds of its parameters, and the order of requests."""

from typing import Any

import msgspec
import pytest

from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.limits import MAX_WAIT_MS
from anabranch.schemas.records import NO_DEADLINE_MS

POLICY = SchedulingPolicy(priority_step_ms=100.0, no_deadline_ms=50.0)


@pytest.mark.parametrize(
    ("arrived_ms", "deadline_ms", "priority", "expected_ms"),
    [(10.0, NO_DEADLINE_MS, 1, 160.0), (10.0, 40, 1, 140.0), (10.0, 70, 1, 160.0), (10.0, 40, 3, 340.0)],
)
def test_policy_urgency_adds_priority_to_the_deadline(
    arrived_ms: float, deadline_ms: int, priority: int, expected_ms: float
) -> None:
    assert POLICY.urgency(arrived_ms, deadline_ms, priority) == expected_ms


@pytest.mark.parametrize(
    "values",
    [
        {"default_priority": 0},
        {"work_slice_ms": -1},
        {"max_backlog_ms": MAX_WAIT_MS + 1},
        {"balance": "always"},
        {"x": 1},
    ],
)
def test_policy_outside_its_bounds_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, SchedulingPolicy)


def test_policy_defaults_are_within_their_bounds() -> None:
    policy = SchedulingPolicy()
    assert msgspec.convert(msgspec.to_builtins(policy), SchedulingPolicy) == policy
    assert (policy.refuses, policy.offloads) == (False, True)
