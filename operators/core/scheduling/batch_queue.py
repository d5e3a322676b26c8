"""Which waiting requests share a batch, and which batch is next.

A unit is one batch: requests of one signature, the most urgent first. A lane (what one task holds) gathers requests
while the task works, and gives the most urgent unit whenever the task is free: an idle task starts at once, and a busy
one finds its batches filled by what came meanwhile. A model may ask for more patience: with a delay, a unit that is not
full waits so long for company.

    no delay                              max_rows 4, delay 2 ms
    ----a----bcd-----------> arrivals     ----a--b---------------> arrivals
        [ a ][ b c d ]       the task           |  ^ unit [a b] at a + 2 ms

Urgency depends on time (see `SchedulingPolicy.urgency`), so no request starves. A request that cannot be answered by
its deadline is not run.
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

#: Shedding goes down to this share of a limit: few requests at a time, for nothing runs while they are refused.
SHED_TO_SHARE = 0.99
#: When what was restored after a failure is said to have come: it is due at once, and goes before what comes now.
LONG_AGO_MS = -1e12
_NEVER = float("inf")
#: Beside twice as many as wait, a heap keeps so many entries of what has gone: each holds a request with all its bytes.
_SLACK = 8

#: Place and number: whoever has the least leaves first, and no two requests of a lane have the same.
Urgency = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Departure:
    """What leaves a lane.

    Attributes:
        unit: The next batch to run; empty where there is none.
        expired: Requests that cannot be answered by their deadline any more: not to be run.
    """

    unit: list[Request]
    expired: list[Request]


class _Group:
    """Waiting requests of one signature.

    Attributes:
        due: The urgency under which the lane's heap holds this group; None while it waits for company.
    """

    __slots__ = (
        "_gone",
        "_line",
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
        self._line: list[tuple[Urgency, Request]] = []  # neither the first nor the last has gone
        self._gone = 0

    @property
    def most_urgent(self) -> Urgency | None:
        """Of all requests here; None where there is none."""
        return self._line[0][0] if self._line else None

    def add(self, request: Request, place: float) -> bool:
        """Whether the request is now the most urgent one."""
        line = self._line
        urgency = (place, request.number)
        self.rows += request.rows
        self.size_bytes += request.size_bytes
        if not line or line[-1][0] < urgency:
            line.append((urgency, request))
        else:
            insort(line, (urgency, request))
        return line[0][1] is request

    def leaves_at_ms(self) -> float:
        """When a unit is due: at once where it is full, or else when the delay of its oldest request is over."""
        max_delay_ms = self.batching.max_delay_ms
        waiting = len(self._line) - self._gone
        is_full = self.rows >= self.max_rows or waiting >= self.max_requests or self.size_bytes >= MAX_BATCH_BYTES
        if is_full or max_delay_ms <= 0:
            return 0.0
        oldest_ms = min(request.arrived_ms for _, request in self._line if not request.gone)
        return max(0.0, oldest_ms + max_delay_ms)

    def drop(self, requests: list[Request]) -> None:
        """Forgets requests of this group, which have gone."""
        for request in requests:
            self.rows -= request.rows
            self.size_bytes -= request.size_bytes
        self._gone += len(requests)
        line = self._line
        while line and line[-1][1].gone:
            line.pop()
            self._gone -= 1
        if line and (line[0][1].gone or self._gone > len(line) // 2):
            self._line = [entry for entry in line if not entry[1].gone]
            self._gone = 0

    def from_last(self) -> Iterator[tuple[Urgency, Request]]:
        """All of them, the least urgent first."""
        return (entry for entry in reversed(self._line) if not entry[1].gone)

    def take(self) -> list[Request]:
        """The most urgent requests, as many as share a unit; at least one."""
        max_rows = self.max_rows
        unit: list[Request] = []
        rows = size_bytes = passed = 0
        for _, request in self._line:
            if request.gone:
                self._gone -= 1
            else:
                size = request.size_bytes
                if unit and (rows + request.rows > max_rows or size_bytes + size > MAX_BATCH_BYTES):
                    break
                if len(unit) == self.max_requests:
                    break
                rows += request.rows
                size_bytes += size
                request.gone = True
                unit.append(request)
            passed += 1
        del self._line[:passed]
        self.rows -= rows
        self.size_bytes -= size_bytes
        return unit

    def least_urgent(self) -> Urgency:
        """Of all requests here; there is one."""
        return self._line[-1][0]

    def last(self) -> list[Request]:
        """The least urgent requests, as many as share a unit, the most urgent of them first; they stay."""
        unit: list[Request] = []
        rows = size_bytes = 0
        for _, request in reversed(self._line):
            if request.gone:
                continue
            rows += request.rows
            size_bytes += request.size_bytes
            if unit and (rows > self.max_rows or size_bytes > MAX_BATCH_BYTES):
                break
            if len(unit) == self.max_requests:
                break
            unit.append(request)
        return unit[::-1]


class BatchQueue:
    """The requests that wait in one task.

    Args:
        policy_of: The batching of a signature's model, and what its batches cost.
    """

    def __init__(self, policy_of: Callable[[bytes], tuple[Batching, BatchCostModel]], policy: SchedulingPolicy) -> None:
        self._policy_of = policy_of
        self._policy = policy
        self._groups: dict[bytes, _Group] = {}
        #: Signatures that have a unit to give, by their most urgent request. An entry other than `_Group.due`
        #: is stale.
        self._due: list[tuple[Urgency, bytes]] = []
        #: Signatures whose requests still wait for company.
        self._patient: set[bytes] = set()
        #: When each request with a deadline must have started; of those that wait, and of some that have gone.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._next_number = 0
        self._waiting = 0
        self.size_bytes = 0
        #: How long the task will work for all that waits.
        self.backlog_ms = 0.0

    def add(self, request: Request, now_ms: float) -> None:
        """Takes a request in; one that was here before a restart keeps its number.

        Args:
            now_ms: Unix time; `LONG_AGO_MS` for what has waited enough.
        """
        if request.number < 0:
            request.number = self._next_number
        self.number_after(request.number)
        request.arrived_ms = now_ms
        group = self._groups.get(request.signature)
        if group is None:
            group = self._groups[request.signature] = _Group(*self._policy_of(request.signature))
        request.cost_ms = group.row_ms * request.rows
        is_first = group.add(request, self._policy.urgency(now_ms, request.deadline_ms, request.rank))
        self._waiting += 1
        self.size_bytes += request.size_bytes
        self.backlog_ms += request.cost_ms
        if request.deadline_ms != NO_DEADLINE_MS:
            latest_ms = request.deadline_ms - group.costs.at_least_ms(request.rows)
            heappush(self._deadlines, (latest_ms, request.number, request))
        if is_first:
            self._note(request.signature, group)

    def take(self, now_ms: float, *, all_is_due: bool = False) -> Departure:
        """The most urgent unit that is due, and whatever has expired.

        Args:
            now_ms: Unix time.
            all_is_due: Whether delays do not count: the input has ended.
        """
        expired = self._expire(now_ms) if self._deadlines else []
        if self._patient:
            self._lose_patience(_NEVER if all_is_due else now_ms)
        if not self._find_due():
            return Departure([], expired)
        signature = heappop(self._due)[1]
        group = self._groups[signature]
        group.due = None
        unit = group.take()
        self._let_go(unit)
        self._note(signature, group)
        self._forget_gone()
        return Departure(unit, expired)

    def take_last(self, is_wanted: Callable[[Sequence[Request]], bool]) -> list[Request]:
        """The least urgent unit that is due and wanted; empty where there is none."""
        due = [group for group in self._groups.values() if group.due is not None]
        for group in sorted(due, key=_Group.least_urgent, reverse=True):
            unit = group.last()
            if is_wanted(unit):
                for request in unit:
                    request.gone = True
                self._drop(unit)
                self._forget_gone()
                return unit
        return []

    def next_deadline(self) -> float | None:
        """When `take` has something to give: 0 for at once, else Unix milliseconds; None while nothing waits."""
        if not self._groups:
            return None
        if self._find_due():
            return 0.0
        while self._deadlines and self._deadlines[0][2].gone:
            heappop(self._deadlines)
        due_ms = min(self._groups[signature].leaves_at_ms() for signature in self._patient)
        return min(due_ms, self._deadlines[0][0]) if self._deadlines else due_ms

    def shed(self, max_backlog_ms: float, max_size_bytes: int) -> list[Request]:
        """Drops the least urgent requests where more waits than that, and a hundredth more.

        Few at a time: while they are refused, nothing else is done.
        """
        if self.backlog_ms <= max_backlog_ms and self.size_bytes <= max_size_bytes:
            return []
        shed: list[Request] = []
        backlog_ms, size_bytes = (
            self.backlog_ms - SHED_TO_SHARE * max_backlog_ms,
            self.size_bytes - SHED_TO_SHARE * max_size_bytes,
        )
        lines = [group.from_last() for group in self._groups.values()]
        for _, request in merge(*lines, key=itemgetter(0), reverse=True):
            if backlog_ms <= 0 and size_bytes <= 0:
                break
            backlog_ms -= request.cost_ms
            size_bytes -= request.size_bytes
            request.gone = True
            shed.append(request)
        self._drop(shed)
        self._forget_gone()
        return shed

    def number_after(self, number: int) -> None:
        """Gives this number to nobody any more."""
        self._next_number = max(self._next_number, number + 1)

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
        """Forgets requests, which have gone, wherever in their lines they stand."""
        by_signature: dict[bytes, list[Request]] = {}
        for request in requests:
            by_signature.setdefault(request.signature, []).append(request)
        self._let_go(requests)
        for signature, of_group in by_signature.items():
            group = self._groups[signature]
            group.drop(of_group)
            self._note(signature, group)

    def _let_go(self, requests: list[Request]) -> None:
        self._waiting -= len(requests)
        for request in requests:
            self.size_bytes -= request.size_bytes
            self.backlog_ms -= request.cost_ms
        if not self._waiting:
            self.backlog_ms = 0.0  # what is left of it is rounding
            self._deadlines.clear()

    def _note(self, signature: bytes, group: _Group) -> None:
        """Notes that a group has another most urgent request now, or none."""
        if group.most_urgent is None:
            del self._groups[signature]
            self._patient.discard(signature)
        elif group.due is None and group.batching.max_delay_ms > 0:
            self._patient.add(signature)
        elif group.due != group.most_urgent:
            group.due = group.most_urgent
            heappush(self._due, (group.due, signature))

    def _lose_patience(self, now_ms: float) -> None:
        for signature in [each for each in self._patient if self._groups[each].leaves_at_ms() <= now_ms]:
            group = self._groups[signature]
            self._patient.discard(signature)
            group.due = group.most_urgent
            assert group.due is not None  # noqa: S101 - a group without requests is not kept
            heappush(self._due, (group.due, signature))

    def _find_due(self) -> bool:
        """Whether a unit is due; its entry is the first of the heap then."""
        due = self._due
        while due:
            group = self._groups.get(due[0][1])
            if group is not None and group.due == due[0][0]:
                return True
            heappop(due)
        return False

    def _forget_gone(self) -> None:
        """Keeps both heaps about as small as what they are about, however long their first entries stay."""
        if len(self._deadlines) > 2 * self._waiting + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].gone]
            heapify(self._deadlines)
        if len(self._due) > 2 * len(self._groups) + _SLACK:
            self._due = [(group.due, signature) for signature, group in self._groups.items() if group.due is not None]
            heapify(self._due)
