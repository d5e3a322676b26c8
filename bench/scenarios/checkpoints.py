"""Time of checkpoints while tasks have more work than they can do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from matplotlib.figure import Figure

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.flink.rest import FlinkRest
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import rate_per_s, tally
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.messages import DELIVERIES
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, anabranch
from bench.workloads.models import in_stages
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, magika_batches, magika_files

TASKS = 2
#: A second, without the batch that may be on its way.
_LIMIT_MS = 1000.0
_INTERVAL_MS = 1000
_LONGEST, _MEDIAN, _RATE = "longest_ms", "median_ms", "rate_per_s"
_POLL_S = 0.25
_TURN_S = 60.0
_SPLIT_ROWS = 64
#: A task and a stage.
_SLOTS = 2
#: Longest wait for a checkpoint after the load.
_TIMEOUT_S = 10.0


class CheckpointSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        checkpoint_rows: Rows of each run.
    """

    checkpoint_rows: int = 4_000


class CheckpointRun(Run, frozen=True, kw_only=True):
    """Checkpoints under a load.

    Attributes:
        times_ms: Time of each checkpoint, from its trigger to its end.
        state_kb: Size of each checkpoint.
        failed: Checkpoints that failed or were given up.
    """

    rate_per_s: float
    times_ms: list[float]
    state_kb: list[float]
    failed: int


@dataclass(frozen=True)
class CheckpointCase:
    """A load that fills the channels between tasks.

    Attributes:
        partitions: Number of the topic's partitions with requests.
    """

    name: str
    workload: Workload
    partitions: int = TASKS * 2


class Checkpoints:
    """This project alone, in both deliveries, on a cluster of one TaskManager process for each task."""

    name = "checkpoints"
    method = (
        "Two tasks, each a TaskManager of its own; all requests are in the topic before the job starts, so that queues "
        f"and channels are full. Magika, a checkpoint each second. Three loads: all requests in one partition, so that "
        f"one task offloads batches to the other; requests of {_SPLIT_ROWS} rows, which are split; and the model in "
        "two stages. In both deliveries. Time: from the trigger of a checkpoint to its end, as Flink's REST API says, "
        "of those that the job triggered before the last answer, and that ended after the first."
    )

    def __init__(self, settings: CheckpointSettings, cases: Sequence[CheckpointCase]) -> None:
        self._settings = settings
        self._cases = cases
        self._systems = [
            replace(anabranch(mode, TASKS), delivery=delivery) for mode in settings.modes for delivery in DELIVERIES
        ]

    def steps(self) -> Iterator[Turn]:
        """Every load in both deliveries, then again for the next round."""
        for repeat in range(self._settings.repeats):
            for case in self._cases:
                for system in self._systems:
                    label = f"checkpoints, round {repeat + 1}: {case.name}, {system.name}"
                    yield Turn(label, partial(self._run, case, system, repeat), _TURN_S, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Median and longest checkpoint of each load, and the limit of the longest."""
        ours = [run for run in runs if isinstance(run, CheckpointRun)]
        metrics = {
            _MEDIAN: [median(run.times_ms) for run in ours],
            _LONGEST: [max(run.times_ms) for run in ours],
            "state_kb": [median(run.state_kb) for run in ours],
            "failed": [float(run.failed) for run in ours],
            _RATE: [run.rate_per_s for run in ours],
        }
        rows = rows_of(ours, metrics, keys_of(ours))
        targets = [row.target(_LONGEST, "<=", _LIMIT_MS) for row in rows]
        return Conclusion(rows, [], targets, {})

    def _run(
        self, case: CheckpointCase, system: System, repeat: int, environment: BenchEnvironment
    ) -> list[CheckpointRun]:
        rows = case.workload.rows
        count = max(1, self._settings.checkpoint_rows // rows)
        topics = environment.topics()
        environment.send(topics.requests, case.workload, count, 0, None, partitions=case.partitions)
        folder = environment.folder / f"checkpoints-{topics.responses}"
        served = replace(system, checkpoint_folder=str(folder / "state"), checkpoint_interval_ms=_INTERVAL_MS)
        with (
            FlinkCluster(folder, task_managers=TASKS, slots=_SLOTS) as cluster,
            environment.serving(served, topics, cluster.url) as process,
        ):
            account = environment.account(*cluster.task_managers.values())
            environment.await_answers(topics.responses, 1, process)
            before = account.look()
            with (
                environment.reading(topics.responses, case.workload, count, (0,) * TASKS * 2) as reader,
                following_checkpoints(cluster.rest) as checkpoints,
            ):
                answers = reader.finish()
            after = account.look()
        environment.drop(topics.requests, topics.responses, topics.errors)
        last_ms = float(answers.appended_ms.max())
        under_load = [each for each in checkpoints.values() if each["trigger_timestamp"] <= last_ms]
        ended = [each for each in under_load if each["status"] == "COMPLETED"]
        if not ended:
            raise Stalled(f"no checkpoint ended under {case.name}: {len(checkpoints)} were seen, give it more rows")
        return [
            CheckpointRun(
                system=system.name,
                workload=case.name,
                repeat=repeat,
                tally=tally(answers, 0, count, case.workload.tolerance),
                core_s_per_1000=core_s_per_1000(before, after, count * rows),
                other_cores=other_cores(before, after),
                rate_per_s=round(rate_per_s(answers.appended_ms, count // 10) * rows, 1),
                times_ms=[float(each["end_to_end_duration"]) for each in ended],
                state_kb=[round(each["state_size"] / 1000, 1) for each in ended],
                failed=sum(each["status"] == "FAILED" for each in under_load),
            )
        ]


@contextmanager
def following_checkpoints(rest: FlinkRest) -> Iterator[dict[int, dict[str, Any]]]:
    """Collect the checkpoints that end in the block, or fail, by their numbers, as Flink's REST API says.

    One that has not ended yet is waited for: it was triggered under load.
    """
    [job] = [job.job_id for job in rest.jobs() if job.state == "RUNNING"]

    def history() -> dict[int, dict[str, Any]]:
        return {each["id"]: each for each in rest.get(f"/jobs/{job}/checkpoints")["history"]}

    # One that is under way may take all the time.
    earlier = {number for number, each in history().items() if each["status"] != "IN_PROGRESS"}
    ended, found = Event(), dict[int, dict[str, Any]]()

    def follow() -> None:
        # Flink keeps the last ten.
        while not ended.wait(_POLL_S):
            found.update({number: each for number, each in history().items() if number not in earlier})

    thread = Thread(target=follow, name="bench-checkpoints")
    thread.start()
    try:
        yield found
    finally:
        give_up_at = monotonic() + _TIMEOUT_S
        pending = [number for number, each in found.items() if each["status"] == "IN_PROGRESS"]
        while any(found[number]["status"] == "IN_PROGRESS" for number in pending) and monotonic() < give_up_at:
            sleep(_POLL_S)
        ended.set()
        thread.join(_TIMEOUT_S)


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, CheckpointRun)]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        times = [ms for run in runs if (run.system, run.workload) == (row.system, row.workload) for ms in run.times_ms]
        axes.plot(times, [place] * len(times), "|", color=plots.OURS, markersize=12)
        axes.plot([median(times)], [place], "o", color=plots.INK, markersize=4)
    axes.axvline(_LIMIT_MS, color=plots.TARGET, linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(result.rows)), [f"{row.workload}: {row.system}" for row in result.rows])
    axes.invert_yaxis()
    axes.set_xlabel("time of each checkpoint, ms; dot: median; dotted: the limit")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@scenario(
    Checkpoints.name,
    full=CheckpointSettings(repeats=2, modes=("thread", "process")),
    quick=CheckpointSettings.quick(checkpoint_rows=2_000),
    draw=draw,
)
def make(settings: CheckpointSettings, models: Repositories) -> Made:
    """Make the scenario."""
    folder: Path = models.magika_in_stages
    cases = [
        CheckpointCase("offloaded", magika_files(folder), partitions=1),
        CheckpointCase("split", magika_batches(folder, _SPLIT_ROWS)),
        CheckpointCase("in stages", magika_files(folder, model=in_stages(MAGIKA))),
    ]
    return Checkpoints(settings, cases), folder
