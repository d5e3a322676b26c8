"""Defects that the core caught, kept until a Flink shell logs them: the core itself writes no log."""

from typing import NamedTuple

from anabranch.operators.core.metrics import Meter
from anabranch.schemas.limits import MAX_PENDING_DEFECTS


class Defect(NamedTuple):
    """An unexpected exception.

    Attributes:
        phase: The phase of the request (`admit`, `queue`, `batch`, `session`, `merge`, `encode`).
        error: The exception, with its traceback.
        detail: The request or record concerned.
    """

    phase: str
    error: BaseException
    detail: str


class Defects:
    """The defects of one task since the last drain.

    Args:
        meter: Counts all of them, by phase.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pending: list[Defect] = []

    def note(self, phase: str, error: BaseException, detail: str = "") -> None:
        """Counts a defect, and keeps it for the log while fewer than `MAX_PENDING_DEFECTS` are kept."""
        self._meter.note_defect(phase)
        if len(self._pending) < MAX_PENDING_DEFECTS:
            self._pending.append(Defect(phase, error, detail))

    def drain(self) -> list[Defect]:
        """Returns the kept defects in order, and forgets them."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        return pending
