"""A queued request that leaves as records for other tasks, one at a time."""

from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, TypeAlias

from anabranch.operators.core.outputs import Output


class Gate(Protocol):
    """Readers that take a limited number of records at a time."""

    @property
    def has_room(self) -> bool:
        """True if a record may leave."""


class Readers(Gate, Protocol):
    """Readers of records with several rows."""

    @property
    def row_ms(self) -> float:
        """Time of a row in the slowest one of its stages; 0 if unknown."""


#: Gate and encoder of each record.
Parts: TypeAlias = Iterator[tuple[Gate | None, Callable[[], Output]]]


def _released(_: float) -> NoReturn:
    raise AssertionError("the request has left the queue")


class SplitRequest:
    """The records of a request that have not left.

    Args:
        target: Name of the readers, for their backlog.
        rows: Rows of all members.
        run_rows: Rows of a record.
        gate: Gate of the first record.
        opening: Makes the OPENING, given the time at which it leaves.
        parts: Makes the others, given the same time.
    """

    __slots__ = (
        "_next",
        "_opening",
        "_parts",
        "_records",
        "gate",
        "has_begun",
        "is_marked",
        "rows",
        "run_rows",
        "target",
    )

    def __init__(
        self,
        target: str,
        rows: int,
        run_rows: int,
        gate: Gate | None,
        opening: Callable[[float], Output],
        parts: Callable[[float], Parts],
    ) -> None:
        self.target = target
        self.rows = rows
        self.run_rows = run_rows
        self.gate = gate
        #: True after the OPENING left.
        self.has_begun = False
        #: True while state knows that.
        self.is_marked = False
        self._opening = opening
        self._parts = parts
        self._records: Parts | None = None
        self._next: Callable[[], Output] | None = None

    @property
    def has_room(self) -> bool:
        """True if the next record may leave."""
        return self.gate is None or self.gate.has_room

    @property
    def is_done(self) -> bool:
        """True if all records left."""
        return self._records is not None and self._next is None

    def release(self) -> None:
        """Drop the records, which refer to the request: it is in no garbage collector's graph."""
        self._opening = self._parts = _released
        self._records = self._next = None

    def advance(self, now_ms: float) -> list[Output]:
        """Return the next record, after the OPENING if that has not left."""
        outputs: list[Output] = []
        if self._records is None:
            records = self._parts(now_ms)
            self.gate, self._next = next(records)
            if not self.has_begun:
                outputs.append(self._opening(now_ms))
            self._records = records
        if self._next is not None:
            outputs.append(self._next())
        self.has_begun = True
        self.gate, self._next = next(self._records, (None, None))
        return outputs
