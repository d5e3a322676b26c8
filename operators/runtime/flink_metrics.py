"""Flink shell of `core.metering`: counters of Flink's, in the scope "anabranch" of the operator.

The Prometheus reporter names them `flink_taskmanager_job_task_operator_anabranch_model_requests{model="…"}` and so on.
"""

from time import monotonic

from apache_beam.metrics.cells import CounterCell
from apache_beam.metrics.execution import MetricsContainer, MetricsEnvironment
from pyflink.datastream import RuntimeContext
from pyflink.fn_execution.metrics.process.metric_impl import GenericMetricGroup
from pyflink.metrics import Counter, MetricGroup

from anabranch.operators.core.metrics import Meter, Path

SCOPE = "anabranch"
#: Groups that come with a value: Flink makes a label of them.
_LABELS = frozenset(("model", "le", "error", "phase"))
#: A counter is a crossing into Java: what was counted waits a little for company.
_INTERVAL_S = 1.0


class FlinkMetrics:
    """Hands what a meter counted to Flink, now and then.

    In process mode PyFlink enters Beam's scope of metrics for elements only: what is counted on a timer goes nowhere,
    without a word. The container of that scope lives as long as the operator: the first element's is kept for timers.
    """

    def __init__(self, meter: Meter, context: RuntimeContext) -> None:
        self._meter = meter
        self._group = context.get_metrics_group().add_group(SCOPE)
        self._counters: dict[Path, Counter | CounterCell] = {}
        self._by_beam = isinstance(self._group, GenericMetricGroup)
        self._container: MetricsContainer | None = None
        self._next_s = 0.0

    def flush(self) -> float:
        """Hands over what there is if it is time; else says in how many seconds it is, 0 if nothing is left."""
        if self._by_beam and self._container is None:
            self._container = MetricsEnvironment.current_container()
            if self._container is None:
                return 0.0  # A timer, and no element so far.
        left_s = self._next_s - monotonic()
        if left_s > 0:
            return left_s if self._meter.has_more else 0.0
        self._next_s = monotonic() + _INTERVAL_S
        for path, count in self._meter.drain().items():
            counter = self._counters.get(path)
            if counter is None:
                counter = self._counters[path] = self._make(path)
            counter.inc(count)
        return 0.0

    def _make(self, path: Path) -> Counter | CounterCell:
        group: MetricGroup = self._group
        names = iter(path[:-1])
        for name in names:
            group = group.add_group(name, next(names)) if name in _LABELS else group.add_group(name)
        counter = group.counter(path[-1])
        return counter if self._container is None else self._container.get_counter(counter._inner_counter.metric_name)
