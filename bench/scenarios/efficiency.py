"""Efficiency: throughput as a share of ONNX Runtime's own on the same cores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from anabranch.demo.features import MODEL_NAME as MAGIKA
from bench.harness.analysis.measures import Spread
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.in_memory.onnx_runtime_alone import workload_rows_per_s
from bench.systems.registry import CONFLUENT, System, anabranch
from bench.workloads.models import FFNN, RESNET
from bench.workloads.repositories import Repositories
from bench.workloads.text_lines import RECOGNIZER, text_lines
from bench.workloads.workload import FFNN_ROWS, Workload, ffnn_rows, magika_files, resnet_pictures

_BATCHES = (1, 8, 32)
_RAW_SECONDS = 3.0
#: Time of a turn, and of each request.
_START_S, _REQUEST_S = 16.0, 5e-5
_LEAST_REQUESTS = 100
_ALONE = ", no generator"
#: Targets, as shares of the attainable rate.
_LEAST_OF_ATTAINABLE = {MAGIKA: 0.8, RESNET: 0.95, RECOGNIZER: 0.95}


@dataclass(frozen=True)
class EfficiencyCase:
    """A workload and its number of requests.

    Attributes:
        rows: Rows of each request.
        share: Share of the settings' number of requests.
        warm_up: Requests before these, as a multiple.
        peers: Systems beside ours.
        is_alone_too: Adds a turn without a generator.
    """

    workload: Workload
    rows: int
    share: float
    warm_up: float
    peers: tuple[System, ...]
    is_alone_too: bool = False


class Efficiency:
    """Workload by workload: ONNX Runtime alone, every system in turn, ONNX Runtime beside broker and generator.

    Args:
        ffnn: Requests of `FFNN_ROWS` rows.
    """

    name = "efficiency"
    method = (
        "As in throughput: all requests are in the topic before a system starts, one task or worker, one thread in "
        "its session; a worker runs what is there as one batch, of 64 requests at most, whatever the model. But while "
        "a system is measured, a generator sends the same kind of requests, by a Poisson schedule, to another topic "
        "of the same broker, which nobody reads: as many a second as our job served in one turn without a generator. "
        "Alone: ONNX Runtime in a loop on one thread, in the best of the batch sizes 1, 8 and 32. Attainable: the same "
        "beside the same generator, at the same rate, on the same cores. Core-seconds of the broker include what it "
        "takes to store that load. The feed-forward network also without a generator, as in throughput: what its "
        "requests cost is mostly their way, on which the load beside them is as much again. Every answer is compared "
        "with a direct run of the model."
    )

    def __init__(
        self,
        settings: Settings,
        ffnn: Workload,
        magika: Workload,
        resnet: Workload,
        recognizer: Workload,
        repository: Path,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._ours = anabranch("thread")
        self._two = anabranch("thread", 2)
        cases = (
            EfficiencyCase(ffnn, FFNN_ROWS, 1 / 10, 5, (CONFLUENT,), is_alone_too=True),
            EfficiencyCase(magika, 1, 1 / 150, 1 / 4, (CONFLUENT, self._two)),
            EfficiencyCase(resnet, 1, 1 / 1250, 1 / 4, (CONFLUENT, self._two)),
            EfficiencyCase(recognizer, 1, 1 / 400, 1 / 4, (CONFLUENT, self._two)),
        )
        self._cases = [case for case in cases if settings.wants(case.workload.name)]
        self._paces: dict[str, float] = {}
        self._alone: dict[str, tuple[int, float]] = {}
        self._attainable: dict[str, float] = {}

    def steps(self) -> Iterator[Turn]:
        """Every workload with all its rounds, then the next."""
        turn_s = _START_S + _REQUEST_S * self._settings.throughput_requests
        for case in self._cases:
            name = f"efficiency, {case.workload.name}"
            requests = max(_LEAST_REQUESTS, ceil(self._settings.throughput_requests * case.share))
            preloaded = Preloaded(case.workload, requests, ceil(requests * case.warm_up))
            alone_s = len(_BATCHES) * (_RAW_SECONDS + 1)
            yield Turn(f"{name}: ONNX Runtime alone", partial(self._measure_alone, case), alone_s)
            yield Turn(f"{name}: without a generator", partial(self._measure_pace, preloaded), turn_s)
            for repeat in range(self._settings.repeats):
                for system in (self._ours, *case.peers):
                    label = f"{name}, round {repeat + 1}: {system.name}"
                    yield Turn(label, partial(self._serve, preloaded, system, repeat), turn_s, repeat)
                    if case.is_alone_too:
                        alone = partial(self._serve_alone, preloaded, system, repeat)
                        yield Turn(f"{label}{_ALONE}", alone, turn_s, repeat)
            yield Turn(f"{name}: attainable", partial(self._measure_attainable, case, preloaded), self._attainable_s)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates, their shares of what is attainable, and ours over each peer's."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        rows_per_request = {case.workload.name: case.rows for case in self._cases}
        metrics = {"rate_per_s": rates}
        if all(run.workload in self._attainable for run in ours):
            metrics["of_attainable"] = [
                run.rate_per_s * rows_per_request[run.workload] / self._attainable_by(run) for run in ours
            ]
        rows = rows_of(ours, metrics, keys_of(ours))
        ratios = [
            ratio
            for case in self._cases
            for one, other in self._pairs(case)
            if (ratio := ratio_of(ours, rates, one, other, case.workload.name, "rate_per_s"))
        ]
        measured = [
            (row.workload, "rate / attainable", row.metrics["of_attainable"].median, _LEAST_OF_ATTAINABLE[row.workload])
            for row in rows
            if row.system == self._ours.name and row.workload in _LEAST_OF_ATTAINABLE and "of_attainable" in row.metrics
        ] + [
            (ratio.workload, f"rate / {ratio.peer}", ratio.ratio.median, 1.0)
            for ratio in ratios
            if ratio.workload.startswith(FFNN) and ratio.peer.startswith(CONFLUENT.name)
        ]
        wrong = {row.workload for row in rows if row.system.startswith(self._ours.name) and row.not_answered_right}
        targets = [
            target_of(workload, self._ours.name, metric, value, ">=", limit, clean=workload not in wrong)
            for workload, metric, value, limit in measured
        ]
        limits = {
            f"{name}: ONNX Runtime alone, 1 thread, batch {batch}, rows/s": round(rate, 1)
            for name, (batch, rate) in self._alone.items()
        }
        limits |= {f"{name}: the same beside the generator": round(rate, 1) for name, rate in self._attainable.items()}
        limits |= {f"{name}: the generator's rate, ours without it": pace for name, pace in self._paces.items()}
        return Conclusion(rows, ratios, targets, limits)

    def _attainable_by(self, run: ThroughputRun) -> float:
        return self._alone[run.workload][1] if run.system.endswith(_ALONE) else self._attainable[run.workload]

    def _pairs(self, case: EfficiencyCase) -> Iterator[tuple[str, str]]:
        """Yield the compared systems: ours with each peer, and two tasks with one."""
        ours = self._ours.name
        yield from ((ours, peer.name) for peer in case.peers if peer != self._two)
        yield ours + _ALONE, CONFLUENT.name + _ALONE
        yield self._two.name, ours

    @property
    def _attainable_s(self) -> float:
        return self._settings.repeats * (_RAW_SECONDS + 1) + 2

    def _measure_pace(self, preloaded: Preloaded, environment: BenchEnvironment) -> list[ThroughputRun]:
        run = preloaded.serve(self._ours, 0, environment)
        self._paces[run.workload] = run.rate_per_s
        return []

    def _serve(
        self, preloaded: Preloaded, system: System, repeat: int, environment: BenchEnvironment
    ) -> list[ThroughputRun]:
        return [preloaded.serve(system, repeat, environment, self._pace(preloaded.workload))]

    def _serve_alone(
        self, preloaded: Preloaded, system: System, repeat: int, environment: BenchEnvironment
    ) -> list[ThroughputRun]:
        run = preloaded.serve(system, repeat, environment)
        return [msgspec.structs.replace(run, system=system.name + _ALONE)]

    def _pace(self, workload: Workload) -> float:
        if workload.name not in self._paces:
            raise Stalled(f"the generator's rate for {workload.name} is not known")
        return self._paces[workload.name]

    def _measure_alone(self, case: EfficiencyCase, environment: BenchEnvironment) -> list[ThroughputRun]:  # noqa: ARG002 - a step's
        rates = {batch: self._raw_rate(case.workload, batch) for batch in _BATCHES}
        best = max(rates, key=lambda batch: rates[batch])
        self._alone[case.workload.name] = best, rates[best]
        return []

    def _measure_attainable(
        self, case: EfficiencyCase, preloaded: Preloaded, environment: BenchEnvironment
    ) -> list[ThroughputRun]:
        preloaded.drop(environment)
        workload = case.workload
        batch, _ = self._alone[workload.name]
        with environment.generating_beside(workload, self._pace(workload), 2 * self._attainable_s) as begin:
            begin()
            rates = [self._raw_rate(workload, batch) for _ in range(self._settings.repeats)]
        self._attainable[workload.name] = Spread.of(rates).median
        return []

    def _raw_rate(self, workload: Workload, batch: int) -> float:
        return workload_rows_per_s(workload, self._repository, batch, _RAW_SECONDS)


def draw(result: ScenarioResult) -> Figure | None:
    """Draw the figure."""
    rows = [row for row in result.rows if "of_attainable" in row.metrics]
    if not rows:
        return None
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(figsize=(8, 1.0 + 0.5 * len(rows) + 0.5 * len(workloads)), layout="constrained")
    heights = [sum(row.workload == workload for row in rows) for workload in workloads]
    panels = figure.subplots(len(workloads), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        shown = [row for row in rows if row.workload == workload]
        for place, row in enumerate(shown):
            share = row.metrics["of_attainable"]
            axes.barh(place, 100 * share.median, color=plots.colour(row), height=0.6)
            axes.plot([100 * share.low, 100 * share.high], [place, place], color=plots.INK, linewidth=1.5)
            label = f"  {row.metrics['rate_per_s'].median:,.4g}/s"
            axes.text(100 * share.high, place, label, va="center", fontsize=9)
        for target in result.targets:
            if target.workload == workload and target.metric == "rate / attainable":
                axes.axvline(100 * target.limit, color=plots.TARGET, linewidth=1, linestyle=":")
        plots.name_rows(axes, shown)
        axes.set_xlim(0, 1.25 * max(100 * row.metrics["of_attainable"].high for row in shown))
        axes.set_title(workload, loc="left", fontsize=11)
    panels[-1].set_xlabel("% of ONNX Runtime's own rate beside broker and generator (median and range of the rounds)")
    return figure


@scenario(Efficiency.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:
    """Make the scenario."""
    large = models.large
    workloads = ffnn_rows(large, FFNN_ROWS), magika_files(large), resnet_pictures(large), text_lines(large)
    return Efficiency(settings, *workloads, large), large
