"""Which waiting requests share a batch, and when it leaves.

A unit is one batch: requests of one signature, in order of priority, then deadline, then arrival. A lane (what one task
holds) collects them, bounded by rows and by a delay. A task that was idle waits for nobody: waiting pays only while
more requests are coming in than can be run one by one.

    busy lane, max_rows 4, delay 2 ms          idle lane
    ----a--b-------------------> time          ----a----------> time
        |  |  ^ unit [a b] at a + 2 ms             ^ unit [a] at once
        c of 4 rows: unit at once
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from schemas.model import Batching
from schemas.records import NO_DEADLINE_MS


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A request in a lane.

    Attributes:
        encoded: Its REQUEST record, as state holds it.
        signature: What it must share with its batch.
        rank: Its priority as a place in line: 1 is first.
    """

    encoded: bytes
    signature: bytes
    rows: int
    rank: int
    deadline_ms: int


@dataclass(slots=True)
class Departure:
    """What leaves a lane.

    Attributes:
        units: Batches to run, in this order.
        expired: Requests whose deadline has passed: to be answered, not run.
        kept: Whether the request that came in now waits in the lane.
        drained: Whether requests that waited before are among those that leave.
    """

    units: list[list[Waiting]] = field(default_factory=list)
    expired: list[Waiting] = field(default_factory=list)
    kept: bool = False
    drained: bool = False


_KEPT = Departure(kept=True)
#: A unit of more bytes than this holds one request only: 64 requests of 16 MiB would not fit into one record.
MAX_UNIT_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class _Group:
    """Waiting requests of one signature."""

    leaves_at_ms: float
    requests: list[Waiting] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0

    def add(self, request: Waiting) -> None:
        self.requests.append(request)
        self.rows += request.rows
        self.size_bytes += len(request.encoded)


class Lane:
    """The requests that wait in one task.

    Args:
        batching_of: The batching of a signature's model.
        idle_gap_ms: Nothing came in for this long: the lane is idle.
    """

    def __init__(self, batching_of: Callable[[bytes], Batching], idle_gap_ms: float) -> None:
        self._batching_of = batching_of
        self._idle_gap_ms = idle_gap_ms
        self._groups: dict[bytes, _Group] = {}

    def on_request(self, request: Waiting, batching: Batching, now_ms: float, idle_ms: float) -> Departure:
        """Takes a request in.

        Args:
            batching: The one of its signature's model.
            now_ms: Unix time.
            idle_ms: For how long the task had nothing to do before this request.
        """
        if request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms <= now_ms:
            return Departure(expired=[request])
        group = self._groups.get(request.signature)
        if group is None:
            full = request.rows >= batching.max_rows or batching.max_delay_ms <= 0
            if full or (not self._groups and idle_ms >= self._idle_gap_ms):
                return Departure(units=[[request]])
            group = self._groups[request.signature] = _Group(leaves_at_ms=now_ms + batching.max_delay_ms)
        group.add(request)
        if group.rows < batching.max_rows and group.size_bytes < MAX_UNIT_BYTES:
            return _KEPT
        del self._groups[request.signature]
        return _depart([group], self._batching_of, now_ms)

    def on_timer(self, now_ms: float) -> Departure:
        """Lets the groups go whose delay is over."""
        due = [signature for signature, group in self._groups.items() if group.leaves_at_ms <= now_ms]
        return _depart([self._groups.pop(signature) for signature in due], self._batching_of, now_ms)

    def flush(self, now_ms: float) -> Departure:
        """Lets everything go: the input has ended."""
        groups = list(self._groups.values())
        self._groups.clear()
        return _depart(groups, self._batching_of, now_ms)

    def next_deadline(self) -> float | None:
        """When `on_timer` is due, in Unix milliseconds; None while nothing waits."""
        return min((group.leaves_at_ms for group in self._groups.values()), default=None)

    def snapshot(self) -> list[bytes]:
        """Every waiting request, in order of arrival within its signature."""
        return [request.encoded for group in self._groups.values() for request in group.requests]

    def restore(self, requests: list[Waiting], now_ms: float) -> None:
        """Puts the requests of a snapshot back; all of them are due at once, for they have waited through a failure."""
        self._groups.clear()
        for request in requests:
            self._groups.setdefault(request.signature, _Group(leaves_at_ms=now_ms)).add(request)


def _depart(groups: list[_Group], batching_of: Callable[[bytes], Batching], now_ms: float) -> Departure:
    departure = Departure(drained=bool(groups))
    for group in groups:
        alive: list[Waiting] = []
        for request in group.requests:
            expired = request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms <= now_ms
            (departure.expired if expired else alive).append(request)
        alive.sort(key=_urgency)  # stable: equals stay in order of arrival
        if alive:
            departure.units += _fill(alive, batching_of(alive[0].signature).max_rows)
    departure.units.sort(key=lambda unit: _urgency(unit[0]))
    return departure


def _fill(requests: list[Waiting], max_rows: int) -> list[list[Waiting]]:
    units: list[list[Waiting]] = []
    rows = size_bytes = 0
    for request in requests:
        if not units or rows + request.rows > max_rows or size_bytes + len(request.encoded) > MAX_UNIT_BYTES:
            units.append([])
            rows = size_bytes = 0
        units[-1].append(request)
        rows += request.rows
        size_bytes += len(request.encoded)
    return units


def _urgency(request: Waiting) -> tuple[int, float]:
    return request.rank, request.deadline_ms or float("inf")
