"""Caught defects, kept until a Flink shell logs them."""

from typing import NamedTuple, Protocol

from anabranch.operators.core.metrics import Meter
from anabranch.schemas.limits import MAX_PENDING_DEFECTS


class Defect(NamedTuple):
    """An unexpected exception.

    Attributes:
        phase: `admit`, `queue`, `batch`, `session`, `merge` or `encode`.
        detail: The request or record concerned.
    """

    phase: str
    error: BaseException
    detail: str


class DefectSink(Protocol):
    """Takes defects."""

    def note(self, phase: str, error: BaseException, detail: str = "") -> None:
        """Note a defect."""


class Defects:
    """The defects of one task since the last drain."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pending: list[Defect] = []

    def note(self, phase: str, error: BaseException, detail: str = "") -> None:
        """Count a defect; keep it for the log below `MAX_PENDING_DEFECTS`."""
        self._meter.note_defect(phase)
        if len(self._pending) < MAX_PENDING_DEFECTS:
            self._pending.append(Defect(phase, error, detail))

    def drain(self) -> list[Defect]:
        """Remove and return the kept defects in order."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        return pending
