"""The latency breakdown of requests, by phase."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.analysis.latency_phases import ALL_STAGES, stages_ms
from bench.harness.analysis.measures import Percentiles
from bench.harness.environment import BenchEnvironment
from bench.harness.load_run import in_service
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import anabranch
from bench.workloads.repositories import Repositories
from bench.workloads.text_lines import text_lines
from bench.workloads.workload import FFNN_ROWS, Workload, ffnn_rows, magika_files, resnet_pictures

_LEAST, _LEAST_MS = "shortest stage, ms", -1.0


class LedgerRun(Run, frozen=True, kw_only=True):
    """A latency breakdown.

    Attributes:
        latency: As in `LatencyRun`.
        stages_ms: Mean time by phase, from the scheduled send time to the reader.
    """

    rate_per_s: float
    latency: Percentiles
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class ExplainedLoad:
    """A workload with `explain`, and a sustainable rate."""

    workload: Workload
    rate_per_s: float
    warm_up: int


class Ledger:
    """This project alone: peers have no latency breakdown."""

    name = "ledger"
    method = (
        "Open loop, Poisson. Requests ask to `explain`: their answers say how long each stage took, up to the written "
        "answer. Before these lies the time by which the generator was late (send), behind them that until the broker "
        "stamped the answer (write: LogAppendTime, and half of the millisecond that it cuts off) and that until the "
        "reader had it (read). Means over all requests. Write and read are what is left between stamps of the job, the "
        "broker and the reader: no other clock measures them, and so all stages sum to the latency by themselves. What "
        "can fail: did the job's stages overlap or count too much, the answer would be stamped before it was written. "
        "The check is that no stage's mean is below -1 ms. Explained: the share of the latency that send and what the "
        "answer itself says make up; what the job does not see is missing there."
    )

    def __init__(self, settings: Settings, accounts: Sequence[ExplainedLoad]) -> None:
        self._settings = settings
        self._accounts = [account for account in accounts if settings.wants(account.workload.name)]
        self._ours = anabranch("thread")

    def steps(self) -> Iterator[Turn]:
        """Each round a new job, for all workloads."""
        seconds = 20 + len(self._accounts) * (self._settings.load_seconds + 10)
        for repeat in range(self._settings.repeats):
            yield Turn(f"ledger, round {repeat + 1}", partial(self._run, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Mean time of each phase; none may be negative."""
        ours = [run for run in runs if isinstance(run, LedgerRun)]
        metrics = {"mean_ms": [run.latency.mean_ms for run in ours]}
        for stage in ALL_STAGES:
            metrics[f"{stage}_ms"] = [run.stages_ms[stage] for run in ours]
        metrics["explained"] = [_explained(run) for run in ours]
        rows = rows_of(ours, metrics, keys_of(ours))
        least = {_LEAST: [min(run.stages_ms.values()) for run in ours]}
        targets = [row.target(_LEAST, ">=", _LEAST_MS) for row in rows_of(ours, least, keys_of(ours))]
        return Conclusion(rows, [], targets, {})

    def _run(self, repeat: int, environment: BenchEnvironment) -> list[LedgerRun]:
        runs = []
        with in_service(environment, self._ours, self._accounts[0].workload) as service:
            for account in self._accounts:
                service.burst(account.workload, self._settings.burst_of(account.warm_up))
                offered = service.offer(
                    account.workload, account.rate_per_s, self._settings.load_seconds, seed=200 + repeat
                )
                runs.append(
                    LedgerRun(
                        system=self._ours.name,
                        workload=account.workload.name,
                        repeat=repeat,
                        tally=offered.tally,
                        core_s_per_1000=offered.core_s_per_1000,
                        other_cores=offered.other_cores,
                        rate_per_s=account.rate_per_s,
                        latency=Percentiles.of(offered.latencies()[0]),
                        stages_ms=stages_ms(offered),
                    )
                )
        return runs


def _explained(run: LedgerRun) -> float:
    return sum(run.stages_ms[stage] for stage in ("send", *PHASES)) / run.latency.mean_ms


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(8, 1.3 + 0.5 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(result.rows))
    for stage, colour in zip(ALL_STAGES, plots.STAGES, strict=True):
        sums = [sum(row.metrics[f"{name}_ms"].median for name in ALL_STAGES) for row in result.rows]
        widths = np.array([row.metrics[f"{stage}_ms"].median for row in result.rows]) / np.array(sums) * 100
        axes.barh(range(len(result.rows)), widths, left=left, height=0.6, color=colour, label=stage)
        left += widths
    names = [f"{row.workload}\n{row.metrics['mean_ms'].median:.3g} ms" for row in result.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the mean latency")
    axes.legend(frameon=False, ncols=len(ALL_STAGES), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    plots.clean(axes)
    return figure


@scenario(Ledger.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:
    """Make the scenario."""
    large = models.large
    accounts = (
        ExplainedLoad(ffnn_rows(large, explain=True), 200, 200_000),
        ExplainedLoad(ffnn_rows(large, FFNN_ROWS, explain=True), 100, 3_000),
        ExplainedLoad(magika_files(large, [{"explain": True}]), 25, 100),
        ExplainedLoad(resnet_pictures(large, explain=True), 3, 10),
        ExplainedLoad(text_lines(large, explain=True), 15, 60),
    )
    return Ledger(settings, accounts), large
