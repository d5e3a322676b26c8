"""What can go wrong with the local stack.

    StackError
    ├── PortInUse         another process has the port
    ├── NotEnoughMemory   the machine has too little left
    ├── NotRunning        there is no stack to ask or stop
    ├── TopicNotMade      the broker refused a topic
    └── StartFailed       a process ended, or was not ready in time

What is missing on the machine itself (Java, jars) is an `InstallationError` of `anabranch.flink_job.installation`.
Every message is one line that says what to do.
"""

from __future__ import annotations

from pathlib import Path

from anabranch.schemas.errors import AnabranchError

_TAIL_LINES = 40
_TAIL_BYTES = 64 * 1024
_CAUSE_CHARACTERS = 300


class StackError(AnabranchError):
    """Base of what can go wrong with the local stack."""

    code = "stack_error"


class PortInUse(StackError):
    """Another process listens on a port that we were told to use."""

    code = "port_in_use"

    def __init__(self, port: int, option: str) -> None:
        super().__init__(f"port {port} is in use by another process: stop it, or choose another port with {option}")


class NotEnoughMemory(StackError):
    """Starting would push the machine into swapping or the out-of-memory killer."""

    code = "not_enough_memory"

    def __init__(self, needed_mb: int, available_mb: int) -> None:
        super().__init__(
            f"the stack needs about {needed_mb} MB of memory and {available_mb} MB are available: "
            "close something, or use fewer --task-managers"
        )


class NotRunning(StackError):
    """There is no running stack."""

    code = "not_running"


class TopicNotMade(StackError):
    """The broker refused to make a topic."""

    code = "topic_not_made"


class StartFailed(StackError):
    """A process ended, or was not ready in time.

    Attributes:
        log_path: The process's log.
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
    """The line that says most: the innermost cause where there is one, else the last error."""
    for marks in (("Caused by: ",), ("ERROR", "FATAL", "Error:", "Exception")):
        lines = [line.strip() for line in tail.splitlines() if any(mark in line for mark in marks)]
        if lines:
            return lines[-1].removeprefix("Caused by: ")[:_CAUSE_CHARACTERS]
    return ""
