"""Troubles of a job, in words: unserved models, failed checkpoints, and the cause of its restarts."""

from __future__ import annotations

import msgspec

from anabranch.jobs.activity import ClockSkew, by_path, clock_skews, wanted_clocks
from anabranch.jobs.checkpoints import CheckpointHealth, age, checkpoint_health
from anabranch.jobs.control import ENDED, cause_of
from anabranch.jobs.left_out import left_out_models
from anabranch.schemas.model import LeftOut
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest


class JobHealth(msgspec.Struct, frozen=True, kw_only=True):
    """State of one job.

    Attributes:
        left_out: Models that it does not serve.
        failure: Cause of its last failure, while it is not running.
        restarts: Failures since its submission; Flink remembers 16.
        restart_cause: Cause of the last one.
        restarted_ms: Its time, since the epoch.
    """

    job_id: str
    name: str
    left_out: list[LeftOut] = []
    failure: str = ""
    checkpoints: CheckpointHealth = CheckpointHealth()
    clocks: list[ClockSkew] = []
    restarts: int = 0
    restart_cause: str = ""
    restarted_ms: int = 0

    def restarted(self, now_ms: float) -> str:
        """Return one line about its restarts; empty without."""
        if not self.restarts:
            return ""
        times = "once" if self.restarts == 1 else f"{self.restarts} times"
        return f"{times}, the last {age(now_ms - self.restarted_ms)} ago: {self.restart_cause}"

    def troubles(self, now_ms: float) -> list[str]:
        """Return one line for each trouble."""
        lines = [f"{each.message}; its requests get model_unavailable" for each in self.left_out]
        if self.failure:
            lines.insert(0, f"does not run: {self.failure}")
        if self.checkpoints.failures or self.checkpoints.is_slow(now_ms):
            lines.append(f"last checkpoint: {self.checkpoints.summary(now_ms)}")
        return [*lines, *(f"since its start, {skew.line}" for skew in self.clocks)]


def healths(rest: FlinkRest, jobs: list[FlinkJob]) -> list[JobHealth]:
    """Return the troubles of the jobs that have not ended; a job may end meanwhile."""
    found = []
    for job in jobs:
        if job.state not in ENDED:
            try:
                found.append(_health(rest, job))
            except StackError:
                continue
    return found


def _clocks(rest: FlinkRest, job: FlinkJob) -> list[ClockSkew]:
    return clock_skews(by_path(rest.sums(job.job_id, wanted_clocks)))


def _health(rest: FlinkRest, job: FlinkJob) -> JobHealth:
    failures = rest.failure_history(job.job_id)
    cause = cause_of(failures[0].trace) if failures else ""
    return JobHealth(
        job_id=job.job_id,
        name=job.name,
        left_out=left_out_models(rest, job.job_id),
        failure="" if job.state == "RUNNING" else cause,
        restarts=len(failures),
        restart_cause=cause,
        restarted_ms=failures[0].time_ms if failures else 0,
        clocks=_clocks(rest, job),
        checkpoints=checkpoint_health(rest.get(f"/jobs/{job.job_id}/checkpoints")),
    )
