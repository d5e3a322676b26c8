"""Finds a running job that a new one would disturb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from anabranch.flink_job.job_identity import IDENTITY_PARAMETER, JobIdentity, decode_identity
from anabranch.flink_job.state.saved_state import SavedState, newest_first
from anabranch.jobs.control import ENDED
from anabranch.stack.errors import JobConflict
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

_POLL_S = 0.5
#: A live job writes a checkpoint within so many intervals; no wait is longer.
_INTERVALS, _MOST_WAIT_S = 1.5, 15.0
_RECENT_INTERVALS = 3


def find_conflict(rest: FlinkRest, identity: JobIdentity) -> tuple[FlinkJob, str] | None:
    """Return a running job of a cluster that conflicts with a new one, and the reason.

    Raises:
        StackError: The cluster does not answer.
    """
    for job in rest.jobs():
        if job.state not in ENDED:
            other = decode_identity(rest.job_parameters(job.job_id).get(IDENTITY_PARAMETER), job.name)
            reason = identity.conflict_with(other)
            if reason:
                return job, reason
    return None


def conflict_error(flink_url: str, job: FlinkJob, reason: str) -> JobConflict:
    """Return the refusal of a job beside one that it would disturb."""
    return JobConflict(
        f"the cluster at {flink_url} runs the job {job.name!r} ({job.job_id}), and {reason}: replace it with "
        "`anabranch run --replace`, stop it, or choose another job.name, group and topics"
    )


def refuse_elsewhere(
    states: Callable[[], Iterable[SavedState]],
    here: Sequence[str],
    interval_ms: int,
    now_ms: float,
    sleep: Callable[[float], None],
) -> None:
    """Refuse a job whose name another cluster runs: its directory gets new checkpoints.

    Waits only if the newest state is a fresh checkpoint of a job that this cluster does not know.

    Args:
        states: Reads the states in the job's directory.
        here: Ids of jobs of this cluster.

    Raises:
        JobConflict: A checkpoint appeared.
    """
    newest = next(iter(newest_first(states())), None)
    if newest is None or newest.kind != "checkpoint" or newest.path.split("/")[-2] in here:
        return
    if now_ms - newest.taken_at_ms > _RECENT_INTERVALS * interval_ms:
        return
    left_s = min(_INTERVALS * interval_ms / 1000 + _POLL_S, _MOST_WAIT_S)
    while left_s > 0:
        sleep(_POLL_S)
        left_s -= _POLL_S
        if any(each.kind == "checkpoint" and each.taken_at_ms > newest.taken_at_ms for each in newest_first(states())):
            folder = newest.path.rsplit("/", 2)[0]
            raise JobConflict(
                f"a job of this name runs on another cluster and writes checkpoints to {folder}: "
                "stop it there, or choose another job.name"
            )
