"""What the page shows of the job: read from Flink and Kafka on a thread of its own, while it is looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic, sleep
from typing import TypeVar

import msgspec

from anabranch.dead_letters import DeadLetters, open_letters
from anabranch.flink_job.config import Config
from anabranch.jobs.activity import JobActivity
from anabranch.jobs.control import ENDED
from anabranch.jobs.health import JobHealth, healths
from anabranch.jobs.operators import OperatorLoad, operator_loads
from anabranch.jobs.watch import JobWatch
from anabranch.monitoring.metrics import ClusterReading, read_cluster
from anabranch.schemas.errors import AnabranchError
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

_FRESH_S = 2.0
_FIRST_INTERVAL_S = 1.5
_T = TypeVar("_T")


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """State of the jobs of a cluster.

    Attributes:
        problem: Reason for which nothing else is known.
        jobs: Jobs that have not ended.
        operators: Of the newest running job.
    """

    problem: str = ""
    jobs: list[FlinkJob] = []
    health: list[JobHealth] = []
    operators: list[OperatorLoad] = []
    activity: JobActivity | None = None


class JobObserver:
    """Reads the state of a cluster, at most every two seconds.

    Args:
        flink: None without a known cluster.
    """

    def __init__(self, flink: FlinkRest | None) -> None:
        self._flink = flink
        self._watch = JobWatch(flink) if flink else None
        self._seen = JobView()
        self._seen_s = -_FRESH_S

    def view(self) -> JobView:
        """Return the state; the first call takes seconds."""
        if self._flink is None or self._watch is None:
            return JobView(problem="this gateway knows no Flink cluster: start it with --flink-url")
        if monotonic() - self._seen_s >= _FRESH_S:
            self._seen = self._read(self._flink, self._watch)
            self._seen_s = monotonic()
        return self._seen

    def _read(self, flink: FlinkRest, watch: JobWatch) -> JobView:
        try:
            jobs = [job for job in flink.jobs() if job.state not in ENDED]
            health = healths(flink, jobs)
            running = next((job for job in jobs if job.state == "RUNNING"), None)
            if running is None:
                return JobView(jobs=jobs, health=health)
            activity = watch.look()
            if activity is None:
                sleep(_FIRST_INTERVAL_S)
                activity = watch.look()
            loads = operator_loads(flink, running.job_id)
        except StackError as error:
            return JobView(problem=error.message)
        return JobView(jobs=jobs, health=health, operators=loads, activity=activity)


class PageData:
    """The data of the page: one thread reads it, since neither reader takes two.

    Args:
        config: Names the errors topic.
        flink_url: REST address of the cluster; empty if unknown.
    """

    def __init__(self, config: Config, flink_url: str) -> None:
        self._config = config
        self._flink = FlinkRest(flink_url) if flink_url else None
        self._observer = JobObserver(self._flink)
        self._thread = ThreadPoolExecutor(1, "anabranch-page")
        self._letters_thread = ThreadPoolExecutor(1, "anabranch-letters")
        self._opened = ExitStack()
        self._letters: DeadLetters | None = None

    async def job(self) -> JobView:
        """Return the state of the job."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._observer.view)

    async def metrics(self) -> ClusterReading | None:
        """Read the metrics of the cluster; None if it is unknown."""
        if self._flink is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, read_cluster, self._flink)

    async def with_letters(self, work: Callable[[DeadLetters], _T]) -> _T:
        """Run a piece of work with the dead letters; raise its error."""
        return await asyncio.get_running_loop().run_in_executor(self._letters_thread, self._run, work)

    def close(self) -> None:
        """Close the connections."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._letters_thread.submit(self._opened.close)
        self._letters_thread.shutdown(wait=True)

    def _run(self, work: Callable[[DeadLetters], _T]) -> _T:
        if self._letters is None:
            self._letters = self._opened.enter_context(open_letters(self._config))
        try:
            return work(self._letters)
        except AnabranchError:
            raise
        except Exception as error:
            # The next look opens another connection.
            self._letters = None
            self._opened.close()
            raise StackError(f"dead letters cannot be read: {error}") from error
