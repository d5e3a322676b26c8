"""Load balancing of unequal work, tasks and models, with and without offloading."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from matplotlib.figure import Figure

from anabranch.stack.flink.cluster import FlinkCluster
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import rate_per_s, tally
from bench.harness.environment import BenchEnvironment
from bench.harness.session_time import read_busy_s
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Ratio, Run, ScenarioResult, keys_of, ratio_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, anabranch
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, heavy_and_light, magika_files

TASKS = 2
_SLOWDOWN = 4
_LIMIT = 1.2
_TURN_S = 50.0
_SKEW, _RATE = "busiest_over_mean", "rate_per_s"


class BalanceSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        balance_requests: Requests of each run.
    """

    balance_requests: int = 3_000


class BalanceRun(Run, frozen=True, kw_only=True):
    """Unequal work, tasks or models.

    Attributes:
        busy_s: Session seconds of each task, ascending.
    """

    rate_per_s: float
    busy_s: list[float]


@dataclass(frozen=True)
class UnequalCase:
    """An unequal load.

    Attributes:
        partitions: Number of the topic's partitions with requests.
        slowdown: Runs of each batch in one of the tasks.
        requests: Multiple of the settings' number.
    """

    name: str
    workload: Workload
    partitions: int
    slowdown: int = 1
    requests: int = 1


class Balance:
    """This project alone, on a cluster of one TaskManager process for each task."""

    name = "balance"
    method = (
        "Two tasks, each a TaskManager of its own. All requests are in the topic before the job starts. Four cases: "
        "every request in one partition, so that one task reads them all; one task that runs every batch four times; a "
        "heavy and a light model, the heavy one's requests all in the partitions of one task; and nothing unequal, "
        "where offloading should change nothing. Busy: how long a task's sessions ran, from the first request to the "
        "last answer. Busiest over mean is 1 where both were as busy, and 2 where one did everything. Each case with "
        "offloading and without, in turn."
    )

    def __init__(self, settings: BalanceSettings, magika: Workload, two_models: Workload) -> None:
        self._settings = settings
        self._cases = (
            UnequalCase("one partition", magika, 1),
            UnequalCase("one task 4x slower", magika, 4, _SLOWDOWN),
            UnequalCase("a heavy and a light model", two_models, 4, requests=30),
            UnequalCase("all equal", magika, 4),
        )
        self._systems = [
            replace(anabranch(mode, TASKS), balance=balance)
            for mode in settings.modes
            for balance in ("offload", "off")
        ]

    def steps(self) -> Iterator[Turn]:
        """Every case with and without, then again for the next round."""
        for repeat in range(self._settings.repeats):
            for case in self._cases:
                for system in self._systems:
                    label = f"balance, round {repeat + 1}: {case.name}, {system.name}"
                    yield Turn(label, partial(self._run, case, system, repeat), _TURN_S, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Skew and rate of each case, with targets and ratios."""
        ours = [run for run in runs if isinstance(run, BalanceRun)]
        metrics = {
            _RATE: [run.rate_per_s for run in ours],
            _SKEW: [max(run.busy_s) * len(run.busy_s) / sum(run.busy_s) for run in ours],
        }
        rows = rows_of(ours, metrics, keys_of(ours))
        offloading = {system.name for system in self._systems if system.balance == "offload"}
        targets = [row.target(_SKEW, "<=", _LIMIT) for row in rows if row.system in offloading]
        ratios: list[Ratio] = []
        for on, off in zip(self._systems[::2], self._systems[1::2], strict=True):
            for case in self._cases:
                ratio = ratio_of(ours, metrics[_RATE], on.name, off.name, case.name, _RATE)
                ratios += [ratio] if ratio else []
        return Conclusion(rows, ratios, targets, {})

    def _run(self, case: UnequalCase, system: System, repeat: int, environment: BenchEnvironment) -> list[BalanceRun]:
        count = self._settings.balance_requests * case.requests
        topics = environment.topics()
        environment.send(topics.requests, case.workload, count, 0, None, partitions=case.partitions)
        folder = environment.folder / f"balance-{topics.responses}"
        busy = folder / "busy"
        busy.mkdir(parents=True)
        slowed = replace(system, busy_folder=str(busy), slowdown=case.slowdown)
        with (
            FlinkCluster(folder, task_managers=TASKS) as cluster,
            environment.serving(slowed, topics, cluster.url) as process,
        ):
            account = environment.account(*cluster.task_managers.values())
            environment.await_answers(topics.responses, 1, process)
            before = account.look()
            environment.await_answers(topics.responses, count, process)
            after = account.look()
            busy_s = read_busy_s(busy)
        answers = environment.read(topics.responses, case.workload, count)
        environment.drop(topics.requests, topics.responses, topics.errors)
        return [
            BalanceRun(
                system=system.name,
                workload=case.name,
                repeat=repeat,
                tally=tally(answers, 0, count, case.workload.tolerance),
                core_s_per_1000=core_s_per_1000(before, after, count),
                other_cores=other_cores(before, after),
                rate_per_s=round(rate_per_s(answers.appended_ms, count // 10), 1),
                busy_s=[round(seconds, 3) for seconds in busy_s],
            )
        ]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(8, 1.0 + 0.4 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        skew = row.metrics["busiest_over_mean"]
        axes.barh(place, skew.median, color=plots.PEER if "no balance" in row.system else plots.OURS, height=0.6)
        axes.plot([skew.low, skew.high], [place, place], color=plots.INK, linewidth=1.5)
    axes.axvline(result.targets[0].limit if result.targets else 1, color=plots.TARGET, linewidth=1, linestyle=":")
    plots.name_rows(axes, result.rows)
    axes.set_yticks(range(len(result.rows)), [f"{row.workload}: {row.system}" for row in result.rows])
    axes.set_xlabel("busy time of the busiest task over the mean (1: both as busy; 2: one did everything)")
    return figure


@scenario(Balance.name, full=BalanceSettings(), quick=BalanceSettings.quick(balance_requests=200), draw=draw)
def make(settings: BalanceSettings, models: Repositories) -> Made:
    """Make the scenario."""
    unequal = models.unequal
    return Balance(settings, magika_files(unequal), heavy_and_light(unequal)), unequal
