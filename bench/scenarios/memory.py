"""Memory of one TaskManager with all models over many requests."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from anabranch.stack.flink.cluster import FlinkCluster
from bench.harness.accounting import core_s_per_1000, other_cores, resident_mb
from bench.harness.analysis.measures import Line, fit_line, tally
from bench.harness.environment import BenchEnvironment
from bench.harness.memory_sampler import Sampler
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, anabranch, naive_map
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

_SLOPE_LIMIT_MB = 1.0
_SLOPE = "mb_per_10000_requests"


class MemorySettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        memory_requests: Requests during the samples.
        memory_warm_up: Requests before these, at full speed.
        memory_settle: Requests between the two at the sampled rate, for the JVM's heap.
        memory_rate_per_s: Rate of the sampled requests.
    """

    memory_requests: int = 100_000
    memory_warm_up: int = 100_000
    memory_settle: int = 40_000
    memory_rate_per_s: float = 1_000.0


class MemoryRun(Run, frozen=True, kw_only=True):
    """A TaskManager's resident memory over many requests.

    Attributes:
        idle_mb: Memory before the job.
        warm_mb: Mean of the samples.
        peak_mb: Maximum of the samples.
        answered: Answered requests at each sample.
        resident_mb: Memory at each sample.
        line: Memory in MB over 10,000 requests.
    """

    idle_mb: float
    warm_mb: float
    peak_mb: float
    rate_per_s: float
    answered: list[int]
    resident_mb: list[float]
    line: Line


class Memory:
    """This project and the naive map, each on a new cluster of one TaskManager."""

    name = "memory"
    method = (
        "A standalone Flink cluster with one TaskManager; the job serves a repository of both models. Resident memory "
        "of the TaskManager's process tree, sampled every second while the feed-forward network's requests come in at "
        "a fixed rate, after a warm-up at full speed and one at that rate. The slope is a least-squares fit."
    )

    def __init__(self, settings: MemorySettings, ffnn: Workload) -> None:
        self._settings = settings
        self._workload = ffnn
        self._pairs = [(anabranch(mode), naive_map(mode)) for mode in settings.modes]

    def steps(self) -> Iterator[Turn]:
        """One round: memory differs little from run to run, and each takes long."""
        for system in (system for pair in self._pairs for system in pair):
            watched = self._settings.memory_requests + self._settings.memory_settle
            seconds = 40 + watched / self._settings.memory_rate_per_s
            yield Turn(f"memory: {system.name}", partial(self._run, system), seconds)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Memory, and its growth with requests."""
        ours = [run for run in runs if isinstance(run, MemoryRun)]
        metrics = {
            "idle_mb": [run.idle_mb for run in ours],
            "warm_mb": [run.warm_mb for run in ours],
            "peak_mb": [run.peak_mb for run in ours],
            _SLOPE: [run.line.slope for run in ours],
        }
        rows = rows_of(ours, metrics, keys_of(ours))
        ratios = [
            ratio_of(ours, metrics["warm_mb"], system.name, naive.name, self._workload.name, "warm_mb")
            for system, naive in self._pairs
        ]
        names = {system.name for system, _ in self._pairs}
        targets = [row.target(_SLOPE, "<=", _SLOPE_LIMIT_MB) for row in rows if row.system in names]
        return Conclusion(rows, [ratio for ratio in ratios if ratio], targets, {})

    def _run(self, system: System, environment: BenchEnvironment) -> list[MemoryRun]:
        settings = self._settings
        at_once, count, rate_per_s = settings.memory_warm_up, settings.memory_requests, settings.memory_rate_per_s
        warm_up = at_once + settings.memory_settle
        topics = environment.topics()
        folder = environment.folder / f"cluster-{topics.responses}"
        with FlinkCluster(folder, task_managers=1, slots=system.parallelism) as cluster:
            (task_manager,) = cluster.task_managers.values()
            idle_mb = resident_mb(task_manager.pid)
            with environment.serving(system, topics, cluster.url) as process:
                account = environment.account(task_manager)
                environment.send(topics.requests, self._workload, at_once, 0, None)
                environment.await_answers(topics.responses, at_once, process)
                environment.send(topics.requests, self._workload, settings.memory_settle, at_once, rate_per_s)
                environment.await_answers(topics.responses, warm_up, process)
                before = account.look()
                with Sampler(environment, task_manager, topics.responses, warm_up) as sampler:
                    environment.send(topics.requests, self._workload, count, warm_up, rate_per_s)
                    environment.await_answers(topics.responses, warm_up + count, process)
                after = account.look()
        answers = environment.read(topics.responses, self._workload, warm_up + count)
        environment.drop(topics.requests, topics.responses, topics.errors)
        resident = np.array(sampler.resident_mb)
        return [
            MemoryRun(
                system=system.name,
                workload=self._workload.name,
                repeat=0,
                tally=tally(answers, 0, warm_up + count, self._workload.tolerance),
                core_s_per_1000=core_s_per_1000(before, after, count),
                other_cores=other_cores(before, after),
                idle_mb=round(idle_mb, 1),
                warm_mb=round(float(resident.mean()), 1),
                peak_mb=round(float(resident.max()), 1),
                rate_per_s=rate_per_s,
                answered=sampler.answered,
                resident_mb=[round(value, 1) for value in sampler.resident_mb],
                line=fit_line(np.array(sampler.answered) / 10_000, resident),
            )
        ]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, MemoryRun)]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        colour = plots.OURS if run.system.startswith("anabranch") else plots.PEER
        thousands = np.array(run.answered) / 1000
        axes.plot(thousands, run.resident_mb, ".", color=colour, markersize=4)
        ends = np.array([run.answered[0], run.answered[-1]])
        axes.plot(ends / 1000, [run.line.at(end / 10_000) for end in ends], color=colour, linewidth=1.5)
        slope = f"{run.line.slope:+.2f} MB for each 10,000"
        axes.text(thousands[-1], run.resident_mb[-1], f"{run.system}\n{slope}", color=colour, ha="right", va="bottom")
    axes.set_ylim(0, 1.25 * max(run.peak_mb for run in runs))
    axes.set_xlabel("thousand requests after warm-up")
    axes.set_ylabel("resident memory of the TaskManager, MB")
    plots.clean(axes)
    return figure


@scenario(
    Memory.name,
    full=MemorySettings(),
    quick=MemorySettings.quick(
        memory_requests=3_000, memory_warm_up=3_000, memory_settle=1_000, memory_rate_per_s=500.0
    ),
    draw=draw,
)
def make(settings: MemorySettings, models: Repositories) -> Made:
    """Make the scenario."""
    return Memory(settings, models.ffnn), models.small
