"""Lists, stops and cancels jobs of a cluster, and takes their savepoints, through Flink's REST interface."""

from __future__ import annotations

import re
from time import monotonic, sleep
from typing import Any

import msgspec

from anabranch.flink_job.model_summary import MANIFEST_PARAMETER
from anabranch.flink_job.state.saved_state import SAVEPOINTS, STATE_PARAMETER, STOPPED
from anabranch.stack.errors import NotRunning, StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

#: States that Flink does not leave.
ENDED = {"FAILED", "CANCELED", "FINISHED"}

_POLL_S = 0.2
#: As pemja names the class of an error.
_CLASS = re.compile(r"^<class '[^']*'>: ")
_SAVEPOINT_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 60.0


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A job and its state.

    Attributes:
        state: Flink's word, such as `RUNNING`.
        start_time_ms: Time of its submission, in milliseconds since the epoch.
        state_url: Folder of its checkpoints and savepoints.
        checkpoint: Path of its last checkpoint or savepoint.
        checkpoint_time_ms: Time of that checkpoint.
        restored_from: Path of the state that was restored last.
        models_manifest: URL of the list of its models' files in the store.
    """

    job_id: str
    name: str
    state: str
    start_time_ms: int
    state_url: str = ""
    checkpoint: str | None = None
    checkpoint_time_ms: int | None = None
    failed_checkpoints: int = 0
    restored_from: str | None = None
    models_manifest: str = ""


class JobControl:
    """The jobs of one cluster."""

    def __init__(self, rest: FlinkRest) -> None:
        """Connect to nothing yet."""
        self._rest = rest

    def summaries(self) -> list[JobSummary]:
        """Return all jobs that the cluster remembers, the newest first."""
        return [self._summary(job) for job in self._rest.jobs()]

    def find(self, wanted: str | None = None) -> FlinkJob:
        """Return the running job with a name or id, or the only job; raise StackError."""
        running = [job for job in self._rest.jobs() if job.state not in ENDED]
        found = [job for job in running if wanted in (None, job.name, job.job_id)]
        names = ", ".join(f"{job.name} ({job.job_id})" for job in running)
        if not found and wanted is None:
            raise NotRunning(f"no job runs on {self._rest.url}: start one with `anabranch run`")
        if not found:
            raise NotRunning(f"unknown job {wanted!r} on {self._rest.url}; running: {names or 'none'}")
        if len(found) > 1:
            raise StackError(f"several jobs run on {self._rest.url}: name one of {names}")
        return found[0]

    def stop(self, job: FlinkJob, *, drain: bool = False) -> str:
        """Stop a job with a savepoint; return its path.

        Args:
            drain: Answers all requests first; otherwise the savepoint keeps them.

        Raises:
            StackError: The savepoint failed; the job goes on.
        """
        body = {"drain": drain, **self._target(job, "targetDirectory", STOPPED)}
        self._await_start(job)
        path = self._await_savepoint(job, self._rest.post(f"/jobs/{job.job_id}/stop", body))
        self.await_end(job)
        return path

    def savepoint(self, job: FlinkJob) -> str:
        """Take a savepoint of a job, which goes on; return its path."""
        body = {"cancel-job": False, **self._target(job, "target-directory", SAVEPOINTS)}
        self._await_start(job)
        return self._await_savepoint(job, self._rest.post(f"/jobs/{job.job_id}/savepoints", body))

    def cancel(self, job: FlinkJob) -> None:
        """Stop a job without a savepoint; its checkpoints stay."""
        self._rest.cancel(job.job_id)
        self.await_end(job)

    def await_end(self, job: FlinkJob) -> None:
        """Wait until a job has ended; raise StackError after two minutes."""
        give_up_at = monotonic() + _END_TIMEOUT_S
        while any(each.job_id == job.job_id and each.state not in ENDED for each in self._rest.jobs()):
            if monotonic() > give_up_at:
                raise StackError(
                    f"job {job.job_id} did not end within {_END_TIMEOUT_S:.0f} s: look at {self._rest.url}"
                )
            sleep(_POLL_S)

    def _target(self, job: FlinkJob, key: str, folder: str) -> dict[str, str]:
        url = self._rest.job_parameters(job.job_id).get(STATE_PARAMETER)
        if not url:
            raise StackError(
                f"job {job.name!r} has no folder for savepoints: start it again with job.checkpoint_dir, "
                "or end it with `anabranch cancel`"
            )
        return {key: f"{url}/{folder}"}

    def _await_start(self, job: FlinkJob) -> None:
        """Wait a minute at most: Flink refuses savepoints while a task starts."""
        give_up_at = monotonic() + _START_TIMEOUT_S
        while any(each.job_id == job.job_id and each.is_starting for each in self._rest.jobs()):
            if monotonic() > give_up_at:
                return  # Flink says which task.
            sleep(_POLL_S)

    def _await_savepoint(self, job: FlinkJob, triggered: Any) -> str:
        path = f"/jobs/{job.job_id}/savepoints/{triggered['request-id']}"
        give_up_at = monotonic() + _SAVEPOINT_TIMEOUT_S
        while (answer := self._rest.get(path))["status"]["id"] != "COMPLETED":
            if monotonic() > give_up_at:
                raise StackError(f"no savepoint of job {job.name!r} within {_SAVEPOINT_TIMEOUT_S:.0f} s")
            sleep(_POLL_S)
        operation = answer["operation"]
        if "location" not in operation:
            raise StackError(f"no savepoint of job {job.name!r}: {_cause(operation)}; the job goes on")
        return str(operation["location"])

    def _summary(self, job: FlinkJob) -> JobSummary:
        checkpoints = self._rest.get(f"/jobs/{job.job_id}/checkpoints")
        latest = checkpoints.get("latest", {})
        completed = [each for kind in ("completed", "savepoint") if (each := latest.get(kind))]
        last = max(completed, key=lambda each: each["trigger_timestamp"], default=None)
        restored = latest.get("restored")
        parameters = self._rest.job_parameters(job.job_id)
        return JobSummary(
            job_id=job.job_id,
            name=job.name,
            state=job.state,
            start_time_ms=job.start_time_ms,
            state_url=parameters.get(STATE_PARAMETER, ""),
            models_manifest=parameters.get(MANIFEST_PARAMETER, ""),
            checkpoint=last["external_path"] if last else None,
            checkpoint_time_ms=last["trigger_timestamp"] if last else None,
            failed_checkpoints=checkpoints.get("counts", {}).get("failed", 0),
            restored_from=restored.get("external_path") if restored else None,
        )


def _cause(operation: dict[str, Any]) -> str:
    """Return the cause of a failed savepoint."""
    return cause_of(str(operation.get("failure-cause", {}).get("stack-trace", "")))


def cause_of(trace: str) -> str:
    """Return the message of the innermost cause in a stack trace of Java, or of Python within it."""
    *_, innermost = f"\n{trace}".split("\nCaused by: ")
    lines = [line for line in innermost.splitlines() if line.strip() and not line.startswith(("\tat ", "\t..."))]
    if not lines:
        return "Flink gives no cause"
    in_python = any("Traceback (most recent call last)" in line for line in lines)
    message = [line for line in lines if not line[0].isspace()][-1] if in_python else lines[0]
    return _CLASS.sub("", message.rsplit("Exception: ", 1)[-1])
