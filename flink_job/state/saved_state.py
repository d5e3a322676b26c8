"""Decides from which saved state a job starts, and which may go.

<checkpoint_dir>/<job name>/<Flink's job id>/chk-N/_metadata    checkpoint
                            stopped/savepoint-*/_metadata       of a stopped job
                            savepoints/savepoint-*/_metadata    of the user
                            fresh                               hides older states
                            models                              URL of the models' manifest
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError

#: Job parameter with its state folder.
STATE_PARAMETER = "anabranch.state-url"
#: Folders of savepoints.
STOPPED = "stopped"
SAVEPOINTS = "savepoints"
#: The newest, and one to fall back on.
RETAINED_CHECKPOINTS = 2


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint or a savepoint in a job's directory.

    Attributes:
        path: Its folder.
        taken_at_ms: Modification time of the metadata.
        size_bytes: Size of the metadata; 0 if incomplete.
    """

    path: str
    kind: Literal["checkpoint", "stopped", "savepoint"]
    taken_at_ms: int
    number: int = 0
    size_bytes: int = 0

    @property
    def is_complete(self) -> bool:
        """True with metadata, which Flink writes last."""
        return self.size_bytes > 0

    @property
    def claim_mode(self) -> str:
        """Flink's mode of restoring; a job removes claimed states."""
        return "NO_CLAIM" if self.kind == "savepoint" else "CLAIM"

    @property
    def label(self) -> str:
        """Words for messages."""
        return f"checkpoint {self.number}" if self.kind == "checkpoint" else "savepoint"


def newest_first(states: Iterable[SavedState], fresh_since_ms: int = 0) -> list[SavedState]:
    """Return the completed states since the last fresh start."""
    usable = [state for state in states if state.is_complete and state.taken_at_ms > fresh_since_ms]
    # File systems may count in seconds; a savepoint that stops a job is its newest state.
    return sorted(usable, key=lambda state: (state.taken_at_ms, state.kind != "checkpoint", state.number), reverse=True)


def surplus(states: Iterable[SavedState], start: SavedState) -> list[SavedState]:
    """Return the removable states before `start`: all but the user's and one to fall back on."""
    older = [state for state in states if state.kind != "savepoint" and state.path != start.path]
    older = [state for state in older if state.taken_at_ms <= start.taken_at_ms]
    spared = newest_first(older)[: RETAINED_CHECKPOINTS - 1]
    return [state for state in older if state not in spared]


def check_state_is_kept(config: Config, *, in_this_process: bool) -> None:
    """Raise ConfigError if state would be lost with its cluster."""
    job = config.job
    if job.checkpoint_dir or (in_this_process and job.delivery != "exactly-once"):
        return
    what = "exactly-once delivery" if job.delivery == "exactly-once" else "a cluster of its own"
    raise ConfigError(
        f"job.checkpoint_dir is missing, and a job with {what} needs one to find its state again: "
        'set it to a folder that all machines of the cluster share, such as "file:///shared/checkpoints"'
    )
