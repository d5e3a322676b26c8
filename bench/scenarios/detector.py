"""A detector with open height and width, beside a loop of ONNX Runtime."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from pathlib import Path

from matplotlib.figure import Figure

from bench.harness.analysis.measures import Spread
from bench.harness.environment import BenchEnvironment
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.in_memory.onnx_runtime_alone import requests_per_s
from bench.systems.registry import CONFLUENT, System, anabranch
from bench.workloads.pages import SIZES, pages
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

_LEAST_OF_LOOP = 0.9
_OF_LOOP = "of_loop"
_START_S, _ABOUT_PER_S = 18.0, 8.0
_LIMIT = "detector: ONNX Runtime alone, 1 thread, page by page, pages/s"


class DetectorSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        detector_pages: Measured pages of a run; half as many before these.
    """

    detector_pages: int = 128


class DetectorBench:
    """The loop; then every system in turn, on the same pages."""

    name = "detector"
    method = (
        "rapidocr's detector of text lines, whose height and width are open, on rendered pages of "
        f"{len(SIZES)} sizes, from {SIZES[0][0]} x {SIZES[0][1]} to {SIZES[-1][0]} x {SIZES[-1][1]}, one a request, in "
        "a random order. The model takes pixels as bytes and scales them itself, and returns the largest probability "
        "of each 4 x 4 pixels, so that requests and answers are below Kafka's megabyte. Rates as in throughput, one "
        "task or worker, one thread in its session; the worker runs pages of one size as one batch. Loop: ONNX Runtime "
        "alone on one thread, page by page, over the same pages, once before each round and once after it. Every "
        "answer is compared with a direct run of the model."
    )

    def __init__(self, settings: DetectorSettings, workload: Workload, repository: Path) -> None:
        self._settings = settings
        self._workload = workload
        self._repository = repository
        self._ours = [anabranch(mode) for mode in settings.modes]
        count = settings.burst_of(settings.detector_pages)
        self._preloaded = Preloaded(workload, count, ceil(count / 2))
        self._loops: list[float] = []

    def steps(self) -> Iterator[Turn]:
        """Round by round, with the loop before and after."""
        settings = self._settings
        loop_s = len(self._workload.requests) / _ABOUT_PER_S
        turn_s = _START_S + 1.5 * settings.detector_pages / _ABOUT_PER_S
        yield Turn("detector: ONNX Runtime alone", self._loop, loop_s)
        for repeat in range(settings.repeats):
            for system in (*self._ours, CONFLUENT):
                label = f"detector, round {repeat + 1}: {system.name}"
                yield Turn(label, partial(self._serve, system, repeat), turn_s, repeat)
            yield Turn(f"detector, round {repeat + 1}: ONNX Runtime alone", self._loop, loop_s, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates as shares of the loop's."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        if not self._loops:
            return Conclusion(rows_of(ours, {"rate_per_s": rates}, keys_of(ours)), [], [], {})
        loop = Spread.of(self._loops).median
        rows = rows_of(ours, {"rate_per_s": rates, _OF_LOOP: [rate / loop for rate in rates]}, keys_of(ours))
        name = self._workload.name
        found = [ratio_of(ours, rates, each.name, CONFLUENT.name, name, "rate_per_s") for each in self._ours]
        names = {system.name for system in self._ours}
        targets = [
            target_of(
                row.workload,
                row.system,
                "rate / loop",
                row.metrics[_OF_LOOP].median,
                ">=",
                _LEAST_OF_LOOP,
                clean=not row.not_answered_right,
            )
            for row in rows
            if row.system in names
        ]
        return Conclusion(rows, [ratio for ratio in found if ratio], targets, {_LIMIT: round(loop, 2)})

    def _loop(self, environment: BenchEnvironment) -> list[ThroughputRun]:  # noqa: ARG002 - a step's
        self._loops.append(requests_per_s(self._workload, self._repository))
        return []

    def _serve(self, system: System, repeat: int, environment: BenchEnvironment) -> list[ThroughputRun]:
        return [self._preloaded.serve(system, repeat, environment)]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        rate = row.metrics["rate_per_s"]
        axes.barh(place, rate.median, color=plots.colour(row), height=0.6)
        axes.plot([rate.low, rate.high], [place, place], color=plots.INK, linewidth=1.5)
        axes.text(rate.high, place, f"  {rate.median:.3g}", va="center", fontsize=9)
    if _LIMIT in result.limits:
        axes.axvline(_LEAST_OF_LOOP * result.limits[_LIMIT], color=plots.TARGET, linewidth=1, linestyle=":")
    plots.name_rows(axes, result.rows)
    axes.set_xlim(0, 1.15 * max(row.metrics["rate_per_s"].high for row in result.rows))
    axes.set_xlabel(f"pages/s (median and range of the rounds; dotted: {_LEAST_OF_LOOP:g} of ONNX Runtime alone)")
    return figure


@scenario(
    DetectorBench.name,
    full=DetectorSettings(modes=("thread", "process"), repeats=2),
    quick=DetectorSettings.quick(),
    draw=draw,
)
def make(settings: DetectorSettings, models: Repositories) -> Made:
    """Make the scenario."""
    return DetectorBench(settings, pages(models.detector), models.detector), models.detector
