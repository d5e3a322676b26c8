"""Flink counters of a task's `Meter`."""

from time import monotonic
from typing import Any, Protocol

from pyflink.datastream import RuntimeContext
from pyflink.metrics import MetricGroup

from anabranch.operators.core.metrics import Meter, Path
from anabranch.operators.runtime import flink_compat

SCOPE = "anabranch"
#: Labels; the next name of a path is the value.
_LABELS = frozenset(("model", "le", "error", "phase"))
#: Counting crosses into Java.
_INTERVAL_S = 1.0


class _Counter(Protocol):
    def inc(self, n: int) -> None: ...


class FlinkMetrics:
    """Copies counts to Flink, at most once a second.

    Timers use the first element's Beam container.
    """

    def __init__(self, meter: Meter, context: RuntimeContext) -> None:
        self._meter = meter
        self._group: MetricGroup = context.get_metrics_group().add_group(SCOPE)
        self._counters: dict[Path, _Counter] = {}
        self._by_beam = flink_compat.counts_through_beam(self._group)
        self._container: Any = None
        self._next_s = 0.0

    def flush(self, *, at_once: bool = False) -> float:
        """Copy due counts; return the seconds until others are due, or 0."""
        if self._by_beam and self._container is None:
            self._container = flink_compat.current_metrics_container()
            if self._container is None:
                return 0.0  # A timer, before the first element.
        left_s = self._next_s - monotonic()
        if left_s > 0 and not at_once:
            return left_s if self._meter.has_more else 0.0
        self._next_s = monotonic() + _INTERVAL_S
        for path, count in self._meter.drain().items():
            counter = self._counters.get(path)
            if counter is None:
                counter = self._counters[path] = self._make(path)
            counter.inc(count)
        return 0.0

    def _make(self, path: Path) -> _Counter:
        group = self._group
        names = iter(path[:-1])
        for name in names:
            group = group.add_group(name, next(names)) if name in _LABELS else group.add_group(name)
        counter: _Counter = group.counter(path[-1])
        return counter if self._container is None else flink_compat.counter_in(self._container, counter)
