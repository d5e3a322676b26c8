"""Queued requests of one task: forms batches, and keeps a journal for state.

A free task takes the most urgent batch at once. With `max_delay_ms`, a batch that is not full waits for more requests.

    no delay                              max_rows 4, delay 2 ms
    ----a----bcd-----------> arrivals     ----a--b---------------> arrivals
        [ a ][ b c d ]       the task           |  ^ batch [a b] at a + 2 ms
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, merge
from operator import itemgetter

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import DEFAULT_ROWS, BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.limits import MAX_BATCH_BYTES
from anabranch.schemas.model import Batching
from anabranch.schemas.records import NO_DEADLINE_MS

#: Shedding stops at this share of a limit.
SHED_TO_SHARE = 0.99
#: Arrival of restored requests.
LONG_AGO_MS = -1e12
_NEVER = float("inf")
#: Stale entries of a heap, beyond twice the valid ones.
_SLACK = 8

#: Time and number of a request; the least leaves first.
Urgency = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Departure:
    """The next batch to run, which may be empty, and expired requests."""

    batch: list[Request]
    expired: list[Request]


@dataclass(frozen=True, slots=True)
class QueueChanges:
    """Queued requests that arrived, and numbers of stored requests that left, since the last settlement."""

    arrived: list[Request]
    departed: list[int]


class _Group:
    """Queued requests of one signature; `due` is the urgency of its entry in the heap."""

    __slots__ = (
        "_entries",
        "_gone",
        "batching",
        "costs",
        "due",
        "max_requests",
        "max_rows",
        "row_ms",
        "rows",
        "size_bytes",
    )

    def __init__(self, batching: Batching, costs: BatchCostModel) -> None:
        self.batching = batching
        self.costs = costs
        self.max_rows = costs.best_rows(batching.max_rows)
        self.max_requests = batching.max_rows or DEFAULT_ROWS
        self.row_ms = costs.predict_ms(self.max_rows) / self.max_rows
        self.due: Urgency | None = None
        self.rows = 0
        self.size_bytes = 0
        self._entries: list[tuple[Urgency, Request]] = []  # Neither first nor last is gone.
        self._gone = 0

    @property
    def most_urgent(self) -> Urgency | None:
        return self._entries[0][0] if self._entries else None

    @property
    def least_urgent(self) -> Urgency:
        return self._entries[-1][0]

    def add(self, request: Request, leaves_ms: float) -> bool:
        """Add a request; return True if it is the most urgent."""
        entries = self._entries
        urgency = (leaves_ms, request.number)
        self.rows += request.rows
        self.size_bytes += request.size_bytes
        if not entries or entries[-1][0] < urgency:
            entries.append((urgency, request))
        else:
            insort(entries, (urgency, request))
        return entries[0][1] is request

    def leaves_at_ms(self) -> float:
        """Return the time at which a batch is due; 0 if it is full."""
        max_delay_ms = self.batching.max_delay_ms
        waiting = len(self._entries) - self._gone
        is_full = self.rows >= self.max_rows or waiting >= self.max_requests or self.size_bytes >= MAX_BATCH_BYTES
        if is_full or max_delay_ms <= 0:
            return 0.0
        oldest_ms = min(request.arrived_ms for _, request in self._entries if not request.gone)
        return max(0.0, oldest_ms + max_delay_ms)

    def drop(self, requests: list[Request]) -> None:
        """Remove requests that are marked as gone."""
        for request in requests:
            self.rows -= request.rows
            self.size_bytes -= request.size_bytes
        self._gone += len(requests)
        entries = self._entries
        while entries and entries[-1][1].gone:
            entries.pop()
            self._gone -= 1
        if entries and (entries[0][1].gone or self._gone > len(entries) // 2):
            self._entries = [entry for entry in entries if not entry[1].gone]
            self._gone = 0

    def from_last(self) -> Iterator[tuple[Urgency, Request]]:
        return (entry for entry in reversed(self._entries) if not entry[1].gone)

    def take(self) -> list[Request]:
        """Remove and return the most urgent batch."""
        max_rows = self.max_rows
        batch: list[Request] = []
        rows = size_bytes = passed = 0
        for _, request in self._entries:
            if request.gone:
                self._gone -= 1
            else:
                size = request.size_bytes
                if batch and (rows + request.rows > max_rows or size_bytes + size > MAX_BATCH_BYTES):
                    break
                if len(batch) == self.max_requests:
                    break
                rows += request.rows
                size_bytes += size
                request.gone = True
                batch.append(request)
            passed += 1
        del self._entries[:passed]
        self.rows -= rows
        self.size_bytes -= size_bytes
        return batch

    def last_batch(self) -> list[Request]:
        """Return the least urgent batch, which stays queued."""
        batch: list[Request] = []
        rows = size_bytes = 0
        for _, request in self.from_last():
            rows += request.rows
            size_bytes += request.size_bytes
            if batch and (rows > self.max_rows or size_bytes > MAX_BATCH_BYTES):
                break
            if len(batch) == self.max_requests:
                break
            batch.append(request)
        return batch[::-1]


class BatchQueue:
    """Queued requests of one key; `batching_of` returns batching and cost model of a signature."""

    def __init__(
        self, batching_of: Callable[[bytes], tuple[Batching, BatchCostModel]], policy: SchedulingPolicy
    ) -> None:
        self._batching_of = batching_of
        self._policy = policy
        self._groups: dict[bytes, _Group] = {}
        #: Due signatures by urgency; stale entries differ from `_Group.due`.
        self._due: list[tuple[Urgency, bytes]] = []
        self._delayed: set[bytes] = set()
        #: Latest start of each request with a deadline.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._next_number = 0
        self._waiting = 0
        self._arrived: list[Request] = []
        self._departed: list[int] = []
        self.size_bytes = 0
        #: Predicted work of all queued requests.
        self.backlog_ms = 0.0

    @property
    def is_full(self) -> bool:
        """True if the task must not read more requests."""
        return self.size_bytes > self._policy.max_waiting_bytes and not self._policy.refuses

    def add(self, request: Request, now_ms: float) -> None:
        """Queue a request; a restored one keeps its number."""
        if request.number < 0:
            request.number = self._next_number
        if request.number >= self._next_number:
            self._next_number = request.number + 1
        request.arrived_ms = now_ms
        group = self._groups.get(request.signature)
        if group is None:
            group = self._groups[request.signature] = _Group(*self._batching_of(request.signature))
        request.cost_ms = group.row_ms * request.rows
        is_first = group.add(request, self._policy.urgency(now_ms, request.deadline_ms, request.priority))
        self._waiting += 1
        self.size_bytes += request.size_bytes
        self.backlog_ms += request.cost_ms
        if not request.stored:
            self._arrived.append(request)
        if request.deadline_ms != NO_DEADLINE_MS:
            latest_ms = request.deadline_ms - group.costs.at_least_ms(request.rows)
            heappush(self._deadlines, (latest_ms, request.number, request))
        if is_first:
            self._update(request.signature, group)

    def forget(self, number: int) -> None:
        """Note that a stored request left without being queued."""
        self._next_number = max(self._next_number, number + 1)
        self._departed.append(number)

    def take(self, now_ms: float, *, all_is_due: bool = False) -> Departure:
        """Remove and return the most urgent due batch and all expired requests.

        Args:
            now_ms: Unix time.
            all_is_due: True to ignore delays.
        """
        expired = self._expire(now_ms) if self._deadlines else []
        if self._delayed:
            self._end_delays(_NEVER if all_is_due else now_ms)
        if not self._find_due():
            return Departure([], expired)
        signature = heappop(self._due)[1]
        group = self._groups[signature]
        group.due = None
        batch = group.take()
        self._note_departure(batch)
        self._update(signature, group)
        self._drop_stale()
        return Departure(batch, expired)

    def take_last(self, is_wanted: Callable[[Sequence[Request]], bool]) -> list[Request]:
        """Remove and return the least urgent batch that is due and wanted."""
        due = [group for group in self._groups.values() if group.due is not None]
        for group in sorted(due, key=lambda each: each.least_urgent, reverse=True):
            batch = group.last_batch()
            if is_wanted(batch):
                for request in batch:
                    request.gone = True
                self._drop(batch)
                self._drop_stale()
                return batch
        return []

    def next_deadline(self) -> float | None:
        """Return the time of the next `take`: 0 for now; None for an empty queue."""
        if not self._groups:
            return None
        if self._find_due():
            return 0.0
        while self._deadlines and self._deadlines[0][2].gone:
            heappop(self._deadlines)
        due_ms = min(self._groups[signature].leaves_at_ms() for signature in self._delayed)
        return min(due_ms, self._deadlines[0][0]) if self._deadlines else due_ms

    def shed(self) -> list[Request]:
        """Remove and return the least urgent requests of a queue over a limit."""
        policy = self._policy
        if self.backlog_ms <= policy.max_backlog_ms and self.size_bytes <= policy.max_waiting_bytes:
            return []
        shed: list[Request] = []
        backlog_ms = self.backlog_ms - SHED_TO_SHARE * policy.max_backlog_ms
        size_bytes = self.size_bytes - SHED_TO_SHARE * policy.max_waiting_bytes
        groups = [group.from_last() for group in self._groups.values()]
        for _, request in merge(*groups, key=itemgetter(0), reverse=True):
            if backlog_ms <= 0 and size_bytes <= 0:
                break
            backlog_ms -= request.cost_ms
            size_bytes -= request.size_bytes
            request.gone = True
            shed.append(request)
        self._drop(shed)
        self._drop_stale()
        return shed

    def settle(self) -> QueueChanges:
        """Return the changes since the last settlement."""
        changes = QueueChanges([request for request in self._arrived if not request.gone], self._departed)
        for request in changes.arrived:
            request.stored = True
        self._arrived, self._departed = [], []
        return changes

    def _expire(self, now_ms: float) -> list[Request]:
        expired: list[Request] = []
        while self._deadlines and (self._deadlines[0][0] <= now_ms or self._deadlines[0][2].gone):
            request = heappop(self._deadlines)[2]
            if not request.gone:
                request.gone = True
                expired.append(request)
        if expired:
            self._drop(expired)
        return expired

    def _drop(self, requests: list[Request]) -> None:
        by_signature: dict[bytes, list[Request]] = {}
        for request in requests:
            by_signature.setdefault(request.signature, []).append(request)
        self._note_departure(requests)
        for signature, of_group in by_signature.items():
            group = self._groups[signature]
            group.drop(of_group)
            self._update(signature, group)

    def _note_departure(self, requests: list[Request]) -> None:
        self._waiting -= len(requests)
        for request in requests:
            self.size_bytes -= request.size_bytes
            self.backlog_ms -= request.cost_ms
            if request.stored:
                self._departed.append(request.number)
        if not self._waiting:
            self.backlog_ms = 0.0  # The rest is rounding.
            self._deadlines.clear()

    def _update(self, signature: bytes, group: _Group) -> None:
        if group.most_urgent is None:
            del self._groups[signature]
            self._delayed.discard(signature)
        elif group.due is None and group.batching.max_delay_ms > 0:
            self._delayed.add(signature)
        elif group.due != group.most_urgent:
            group.due = group.most_urgent
            heappush(self._due, (group.due, signature))

    def _end_delays(self, now_ms: float) -> None:
        for signature in [each for each in self._delayed if self._groups[each].leaves_at_ms() <= now_ms]:
            group = self._groups[signature]
            self._delayed.discard(signature)
            group.due = group.most_urgent
            assert group.due is not None  # noqa: S101 - empty groups are removed
            heappush(self._due, (group.due, signature))

    def _find_due(self) -> bool:
        """Drop stale entries; return True if a group is due."""
        due = self._due
        while due:
            group = self._groups.get(due[0][1])
            if group is not None and group.due == due[0][0]:
                return True
            heappop(due)
        return False

    def _drop_stale(self) -> None:
        if len(self._deadlines) > 2 * self._waiting + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].gone]
            heapify(self._deadlines)
        if len(self._due) > 2 * len(self._groups) + _SLACK:
            self._due = [(group.due, signature) for signature, group in self._groups.items() if group.due is not None]
            heapify(self._due)
