"""Watches the counters of a running job through Flink's REST interface."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from anabranch.jobs.activity import ActivityWindow, JobActivity, wanted
from anabranch.stack.errors import NotRunning, StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

_SETTLE_S = 0.3
_UPDATE_INTERVAL = "metrics.fetcher.update-interval"
_FLINK_DEFAULT_MS = 10_000


class JobWatch:
    """Looks at the newest running job of a cluster.

    Flink answers with the counters that it fetched last, and fetches new ones afterwards; so each look asks twice.
    """

    def __init__(
        self, flink: FlinkRest, clock: Callable[[], float] = monotonic, wait: Callable[[float], None] = sleep
    ) -> None:
        self._flink = flink
        self._clock = clock
        self._wait = wait
        self._window: ActivityWindow | None = None
        self._job_id = ""

    def look(self) -> JobActivity | None:
        """Return the activity between the last two looks that saw new counters; None at the first.

        Raises:
            NotRunning: No job runs.
            StackError: The cluster does not answer.
        """
        job = self._job()
        if self._window is None or job.job_id != self._job_id:
            self._window = ActivityWindow(self._refresh_s())
            self._job_id = job.job_id
        self._flink.sums(job.job_id, wanted)
        asked_s = self._clock()
        self._wait(_SETTLE_S)
        return self._window.add(asked_s, self._flink.sums(job.job_id, wanted))

    def _job(self) -> FlinkJob:
        running = [job for job in self._flink.jobs() if job.state == "RUNNING"]
        if not running:
            raise NotRunning(f"no job runs on {self._flink.url}: start one with `anabranch run`")
        return running[0]

    def _refresh_s(self) -> float:
        try:
            settings = {each["key"]: each["value"] for each in self._flink.get("/jobmanager/config")}
            return int(settings.get(_UPDATE_INTERVAL, _FLINK_DEFAULT_MS)) / 1000
        except (StackError, ValueError):
            return _FLINK_DEFAULT_MS / 1000
