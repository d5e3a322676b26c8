"""Memory of one TaskManager with every model loaded, over many requests, on a standalone cluster."""

from collections.abc import Iterator, Sequence
from functools import partial
from threading import Event, Thread
from typing import Self

import numpy as np

from anabranch.stack.flink_cluster import FlinkCluster
from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import core_s_per_1000, other_cores, resident_mb
from bench.harness.analysis.measures import fit_line, tally
from bench.harness.environment import BenchEnvironment
from bench.harness.settings import Settings
from bench.report.results import AnyRun, MemoryRun, keys_of, ratio_of, rows_of
from bench.scenarios.base import Conclusion, Step
from bench.systems.registry import System, anabranch, naive_map
from bench.workloads.workload import Workload

_SAMPLE_INTERVAL_S = 1.0
_SLOPE_LIMIT_MB = 1.0
_SLOPE = "mb_per_10000_requests"


class Memory:
    """This project and the naive map, each on a new cluster of one TaskManager."""

    name = "memory"
    method = (
        "A standalone Flink cluster with one TaskManager; the job serves a repository of both models. Resident memory "
        "of the TaskManager's process tree, sampled every second while the feed-forward network's requests come in at "
        "a fixed rate, after a warm-up at full speed and one at that rate. The slope is a least-squares fit."
    )

    def __init__(self, settings: Settings, ffnn: Workload) -> None:
        self._settings = settings
        self._workload = ffnn
        self._pairs = [(anabranch(mode), naive_map(mode)) for mode in settings.modes]

    def steps(self) -> Iterator[Step]:
        """One round: memory differs little from run to run, and each takes long."""
        for system in (system for pair in self._pairs for system in pair):
            watched = self._settings.memory_requests + self._settings.memory_settle
            seconds = 40 + watched / self._settings.memory_rate_per_s
            yield Step(f"memory: {system.name}", partial(self._run, system), seconds)

    def conclude(self, runs: Sequence[AnyRun]) -> Conclusion:
        """How much, and how much more with every request."""
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


class Sampler:
    """Notes a process's memory, and the answers so far, every second of a `with` block and at its end."""

    def __init__(self, environment: BenchEnvironment, process: LocalProcess, topic: str, answered_before: int) -> None:
        self._environment = environment
        self._process = process
        self._topic = topic
        self._answered_before = answered_before
        self._stopped = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self.answered: list[int] = []
        self.resident_mb: list[float] = []

    def __enter__(self) -> Self:
        """Starts to note."""
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Notes a last time."""
        self._stopped.set()
        self._thread.join()
        self._note()

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_INTERVAL_S):
            self._note()

    def _note(self) -> None:
        self.answered.append(sum(self._environment.end_offsets(self._topic)) - self._answered_before)
        self.resident_mb.append(resident_mb(self._process.pid))
