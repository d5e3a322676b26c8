"""FlinkMetrics: counts of a meter reach Flink's counters, once a second."""

from typing import Any
from unittest.mock import Mock

import pytest

from anabranch.operators.core.metrics import Meter
from anabranch.operators.runtime import flink_metrics
from anabranch.operators.runtime.flink_metrics import SCOPE, FlinkMetrics


class Group:
    """A metric group that records its counters by their whole path."""

    def __init__(self, counted: dict[tuple[str, ...], int], *path: str) -> None:
        self.counted, self.path = counted, path

    def add_group(self, *names: str) -> "Group":
        return Group(self.counted, *self.path, *names)

    def counter(self, name: str) -> Any:
        def inc(n: int) -> None:
            self.counted[*self.path, name] = self.counted.get((*self.path, name), 0) + n

        return Mock(inc=inc)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [100.0]
    monkeypatch.setattr(flink_metrics, "monotonic", lambda: now_s[0])
    return now_s


def test_flush_adds_counts_to_counters_once_a_second(clock: list[float]) -> None:
    counted: dict[tuple[str, ...], int] = {}
    meter = Meter()
    metrics = FlinkMetrics(meter, Mock(**{"get_metrics_group.return_value": Group(counted)}))
    meter.note_error("overloaded", 2)
    assert metrics.flush() == 0
    assert counted == {(SCOPE, "error", "overloaded", "requests"): 2}
    assert metrics.flush() == 0, "there are no counts to come back for"
    meter.note_error("overloaded")
    clock[0] += 0.25
    assert metrics.flush() == 0.75
    clock[0] += 0.75
    assert metrics.flush() == 0
    assert counted == {(SCOPE, "error", "overloaded", "requests"): 3}
