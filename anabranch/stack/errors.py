"""Errors of the local stack.

    StackError
    ├── PortInUse
    ├── NotEnoughMemory
    ├── NotRunning
    ├── TopicNotMade
    └── StartFailed

A missing Java or jar is an `InstallationError`.
"""

from __future__ import annotations

from pathlib import Path

from anabranch.schemas.errors import AnabranchError

_TAIL_LINES = 40
_TAIL_BYTES = 64 * 1024
_CAUSE_CHARACTERS = 300


class StackError(AnabranchError):
    """Base of the errors of the local stack."""

    code = "stack_error"


class PortInUse(StackError):
    """Another process listens on the port."""

    code = "port_in_use"

    def __init__(self, port: int, option: str) -> None:
        super().__init__(f"port {port} is in use by another process: stop it, or choose another port with {option}")


class NotEnoughMemory(StackError):
    """The machine has too little memory left to start."""

    code = "not_enough_memory"

    def __init__(self, needed_mb: int, available_mb: int) -> None:
        super().__init__(
            f"the stack needs about {needed_mb} MB of memory and {available_mb} MB are available: "
            "close something, or use fewer --task-managers"
        )


class NotRunning(StackError):
    """No stack runs."""

    code = "not_running"


class JobConflict(StackError):
    """Another running job would be disturbed."""

    code = "job_conflict"


class TopicNotMade(StackError):
    """The broker refused to create a topic."""

    code = "topic_not_made"


class StartFailed(StackError):
    """A process ended, or was not ready in time.

    Attributes:
        log_path: The log.
        tail: Its last lines.
    """

    code = "start_failed"

    def __init__(self, name: str, reason: str, log_path: Path) -> None:
        self.log_path = log_path
        self.tail = _tail(log_path)
        cause = _cause(self.tail)
        super().__init__(f"{name} {reason}{': ' + cause if cause else ''}; its log is {log_path}")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _cause(tail: str) -> str:
    """Return the line of the innermost cause, else of the last error."""
    for marks in (("Caused by: ",), ("ERROR", "FATAL", "Error:", "Exception")):
        lines = [line.strip() for line in tail.splitlines() if any(mark in line for mark in marks)]
        if lines:
            return lines[-1].removeprefix("Caused by: ")[:_CAUSE_CHARACTERS]
    return ""
