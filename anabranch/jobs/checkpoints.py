"""Health of a job's checkpoints, from Flink's statistics."""

from __future__ import annotations

from typing import Any

import msgspec

#: A checkpoint that is under way for longer is told.
_SLOW_MS = 60_000
_JOB_MANAGER = "the JobManager could not write: check job.checkpoint_dir and its free space"
#: Flink's messages, in plain words.
_PLAIN = {
    "expired before completing": "it took longer than job.checkpoint_timeout_ms: storage is slow, or tasks are busy",
    "Asynchronous task checkpoint failed": "a task could not write its state: read `anabranch logs --errors`",
    "Task has failed": "a task failed",
    "Task local checkpoint failure": "a task could not write its state: read `anabranch logs --errors`",
    "Failure to finalize checkpoint": _JOB_MANAGER,
    "An Exception occurred while triggering": _JOB_MANAGER,
}


class CheckpointHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Checkpoints of one job.

    Attributes:
        completed_ms: Time of the last completed one, since the epoch.
        failures: Failures since then.
        cause: Of the last failure.
        under_way_ms: Start of a running checkpoint.
    """

    completed_ms: int | None = None
    failures: int = 0
    cause: str = ""
    under_way_ms: int | None = None

    def summary(self, now_ms: float) -> str:
        """Return one line for people."""
        completed = "none yet" if self.completed_ms is None else f"{age(now_ms - self.completed_ms)} ago"
        times = "once" if self.failures == 1 else f"{self.failures} times in a row"
        failed = f"; failed {times}: {self.cause}" if self.failures else ""
        slow = f"; one is under way for {age(now_ms - (self.under_way_ms or 0))}" if self.is_slow(now_ms) else ""
        return f"{completed}{failed}{slow}"

    def is_slow(self, now_ms: float) -> bool:
        """Tell whether a checkpoint is under way for a minute."""
        return self.under_way_ms is not None and now_ms - self.under_way_ms > _SLOW_MS


def checkpoint_health(statistics: dict[str, Any]) -> CheckpointHealth:
    """Read the answer to `/jobs/ID/checkpoints`."""
    history = sorted(statistics.get("history", ()), key=lambda each: each["trigger_timestamp"], reverse=True)
    completed = (statistics.get("latest") or {}).get("completed") or {}
    completed_ms = completed.get("latest_ack_timestamp") or completed.get("trigger_timestamp")
    failed = []
    for each in history:
        if each["status"] == "COMPLETED":
            break
        if each["status"] == "FAILED":
            failed.append(str(each.get("failure_message") or "Flink gives no cause"))
    under_way = [each["trigger_timestamp"] for each in history if each["status"] == "IN_PROGRESS"]
    return CheckpointHealth(
        completed_ms=completed_ms,
        failures=len(failed),
        cause=_in_words(failed[0]) if failed else "",
        under_way_ms=min(under_way, default=None),
    )


def _in_words(message: str) -> str:
    return next((words for said, words in _PLAIN.items() if said in message), message.splitlines()[0])


def age(ms: float) -> str:
    """Write a time in seconds, minutes, hours or days."""
    seconds = max(0.0, ms / 1000)
    for size_s, unit in ((86_400, "days"), (3_600, "hours"), (60, "min")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
