"""Queued requests of one task: forms batches, and keeps a journal for state.

A free task takes the most urgent batch at once. With `max_delay_ms`, a batch that is not full waits for more requests.

    no delay                              max_rows 4, delay 2 ms
    ----a----bcd-----------> arrivals     ----a--b---------------> arrivals
        [ a ][ b c d ]       the task           |  ^ batch [a b] at a + 2 ms
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush, merge
from operator import itemgetter

import msgspec

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import DEFAULT_ROWS, BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.split_request import Gate, SplitRequest
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
LOOK_AGAIN_MS = 2.0
#: Wait for a slow batch beside the task: at least, as a share of its time until now, and without a known end.
_SLOW_LOOK_MS, _SLOW_LOOK_SHARE, _LANE_LOOK_MS = 1.0, 1 / 128, 10.0
#: Longest batch in place of a slow one, as a share of that limit.
_QUICK_SHARE = 0.5
#: Time to store a small request, in process mode.
_STORE_MS = 0.02
_SPLIT = b"split "

#: Time and number of a request; the least leaves first.
Urgency = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Departure:
    """The next batch to run, which may be empty, and expired requests.

    Attributes:
        is_slow: True if the batch runs beside the task; it stays in state until `end_slow`.
    """

    batch: list[Request]
    expired: list[Request]
    is_slow: bool = False


@dataclass(frozen=True, slots=True)
class Handling:
    """The way in which requests of one signature are served.

    Attributes:
        target: Name of the readers elsewhere; empty for the task itself.
        gate: Room of these readers; None for any.
        row_elements: Elements of a row of all inputs.
    """

    batching: Batching
    costs: BatchCostModel
    target: str = ""
    gate: Gate | None = None
    row_elements: int = 1


@dataclass(frozen=True, slots=True)
class QueueChanges:
    """Changes since the last settlement.

    Attributes:
        arrived: Queued requests that state lacks.
        departed: Keys that leave state.
        begun: Queued requests of which the first records left.
    """

    arrived: list[Request]
    departed: list[int]
    begun: Sequence[Request] = ()


def begun_key(number: int) -> int:
    """Return the key in state that marks a request as begun, or the reverse."""
    return -1 - number


class _Group:
    """Queued requests of one signature.

    Attributes:
        due: Urgency of its entry in the heap.
        blocked_at_ms: Time without room since.
        call_cost: Work that the rows of a batch share, in units of `unit_ms`.
        linear_rows: Requests of at most these rows cost `row_cost` each row.
        work: That of all requests.
        in_order: True if none may run beside the task.
    """

    __slots__ = (
        "_entries",
        "_gone",
        "_row_elements",
        "batching",
        "blocked_at_ms",
        "call_cost",
        "costs",
        "due",
        "gate",
        "in_order",
        "is_gated",
        "linear_rows",
        "max_requests",
        "max_rows",
        "may_be_slow",
        "revision",
        "row_cost",
        "rows",
        "size_bytes",
        "slow_ms",
        "target",
        "unit_ms",
        "work",
    )

    def __init__(self, handling: Handling, slow_ms: float = _NEVER) -> None:
        self.batching = batching = handling.batching
        self.costs = handling.costs
        self._row_elements = handling.row_elements
        self.target = handling.target
        self.gate = handling.gate
        self.max_requests = batching.max_rows or DEFAULT_ROWS
        self.slow_ms = slow_ms
        self.in_order = False
        self.due: Urgency | None = None
        self.blocked_at_ms: float | None = None
        self.rows = 0
        self.size_bytes = 0
        self.work = 0.0
        self.max_rows, self.call_cost, self.row_cost = 0, 0.0, 0.0
        self._entries: list[tuple[Urgency, Request]] = []  # Neither first nor last is gone.
        self._gone = 0
        self.follow_costs()

    def follow_costs(self) -> None:
        """Predict the work of all requests anew."""
        priced = self.max_rows, self.call_cost, self.row_cost
        quote = self.costs.quote(self.batching.max_rows, self._row_elements)
        self.revision, self.unit_ms, self.max_rows, self.call_cost, self.row_cost, most_ms = quote
        self.linear_rows = self._linear_rows()
        self.may_be_slow = not self.target and not self.in_order and most_ms > self.slow_ms
        #: True if the next batch may have to wait.
        self.is_gated = self.may_be_slow or bool(self.target)
        # Another unit changes no request; there may be 100,000.
        if not self._entries or priced == (self.max_rows, self.call_cost, self.row_cost):
            return
        rows, self.work = 0, 0.0
        for _, request in self._entries:
            if not request.gone:
                request.cost = self.cost_of(request, rows)
                rows += request.rows
                self.work += request.cost

    @property
    def work_ms(self) -> float:
        return self.work * self.unit_ms

    def _linear_rows(self) -> float:
        return 0 if self.call_cost else self.max_rows

    def at_least_ms(self, rows: int) -> float:
        """Return the least time of a batch in the last runs."""
        return self.costs.at_least_ms(rows, self._row_elements)

    def note_wait(self, rows: int, waited_ms: float) -> None:
        """Learn from a wait for the readers."""
        self.costs.note_wait(rows, waited_ms, self._row_elements)

    def cost_of(self, request: Request, rows_before: int) -> float:
        """Predict the work that a request adds.

        Args:
            rows_before: Rows of the requests before it.
        """
        rows, max_rows = request.rows, self.max_rows
        if rows > max_rows:
            return self.costs.cost(rows, self._row_elements)
        # The first request of each batch pays for the call.
        is_first = (rows_before + rows - 1) // max_rows > (rows_before - 1) // max_rows
        return self.row_cost * rows + self.call_cost * is_first

    @property
    def waiting(self) -> int:
        return len(self._entries) - self._gone

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
        is_full = self.rows >= self.max_rows or self.waiting >= self.max_requests or self.size_bytes >= MAX_BATCH_BYTES
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

    def take(self, most_rows: int = 0) -> list[Request]:
        """Remove and return the most urgent batch, of at most so many rows."""
        max_rows = most_rows or self.max_rows
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

    def has_room(self) -> bool:
        """Tell whether the next batch may leave."""
        return self.gate is None or self.gate.has_room

    def next_rows(self) -> int:
        """Return the most rows of the next batch."""
        return max(min(self.rows, self.max_rows), self._entries[0][1].rows)

    def is_slow(self) -> bool:
        """Tell whether the next batch runs beside the task."""
        return self.may_be_slow and self.costs.expect_ms(self.next_rows(), self._row_elements) > self.slow_ms

    def quick_rows(self) -> int:
        """Return the rows of a smaller batch that is not slow; 0 for none."""
        rows, least = self.next_rows(), self._entries[0][1].rows
        while rows > least:
            rows = max(least, rows - (rows + 3) // 4)
            if self.costs.expect_ms(rows, self._row_elements) <= _QUICK_SHARE * self.slow_ms:
                return rows
        return 0

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


class _SplitGroup(_Group):
    """Split requests of one signature, which stay queued until all their records left."""

    __slots__ = ()

    def __init__(self, handling: Handling, target: str) -> None:
        at_once = msgspec.structs.replace(handling.batching, max_delay_ms=0.0)
        super().__init__(replace(handling, batching=at_once, target=target))

    def _linear_rows(self) -> float:
        return 0 if self.call_cost else _NEVER

    def cost_of(self, request: Request, rows_before: int) -> float:
        """See `_Group`; each record is a batch."""
        split = request.split
        if split is None:
            return super().cost_of(request, rows_before)
        return self.row_cost * split.rows + self.call_cost * -(-split.rows // (split.run_rows or 1))

    def take(self, most_rows: int = 0) -> list[Request]:
        return [self._entries[0][1]]

    def has_room(self) -> bool:
        split = self._entries[0][1].split
        return split is None or split.has_room

    def from_last(self) -> Iterator[tuple[Urgency, Request]]:
        """Yield only requests that the queue may still answer."""
        return (entry for entry in reversed(self._entries) if not entry[1].gone and not _has_begun(entry[1]))


def _has_begun(request: Request) -> bool:
    return request.split is not None and request.split.has_begun


class BatchQueue:
    """Queued requests of one key.

    Args:
        handling_of: Returns the handling of a signature.
        lane: Has room if a slow batch may start beside the task; without it, all batches are quick.
        look_again_ms: Wait for readers without room.
    """

    def __init__(
        self,
        handling_of: Callable[[bytes], Handling],
        policy: SchedulingPolicy,
        lane: Gate | None = None,
        look_again_ms: float = LOOK_AGAIN_MS,
    ) -> None:
        self._handling_of = handling_of
        self._look_again_ms = look_again_ms
        self._policy = policy
        self._lane = lane
        self._slow_ms = _NEVER if lane is None else policy.slow_batch_ms
        #: The slow batch under way, its costs, start and earliest end.
        self.running: list[Request] = []
        self._running_costs: BatchCostModel | None = None
        self._began_ms = self._may_end_ms = 0.0
        self._groups: dict[bytes, _Group] = {}
        #: Due signatures by urgency; stale entries differ from `_Group.due`.
        self._due: list[tuple[Urgency, bytes]] = []
        self._delayed: set[bytes] = set()
        #: Due signatures whose readers have no room.
        self._blocked: set[bytes] = set()
        self._looked_at_ms = 0.0
        #: Latest start of each request with a deadline.
        self._deadlines: list[tuple[float, int, Request]] = []
        self._next_number = 0
        self._waiting = 0
        self._arrived: list[Request] = []
        self._departed: list[int] = []
        self._begun: dict[int, Request] = {}
        self.size_bytes = 0
        #: Predicted work for this task.
        self.backlog_ms = 0.0
        #: Predicted work for other tasks, by target.
        self._away_ms: dict[str, float] = {}
        #: Costs that the last batch may have changed.
        self._costs: BatchCostModel | None = None
        self._revision = 0
        self._is_stale = False
        #: Group, rows and wait of the last batch for other readers.
        self._sent: tuple[_Group, int, float] | None = None
        #: Time of the last one, by target.
        self._sent_at_ms: dict[str, float] = {}
        self._lets_pass = False

    @property
    def is_full(self) -> bool:
        """True if the task must not read more requests."""
        return self.size_bytes > self._policy.max_waiting_bytes and not self._policy.refuses

    @property
    def is_cheap(self) -> bool:
        """True if running takes less time than storing."""
        return self.backlog_ms <= self._waiting * _STORE_MS

    def add(self, request: Request, now_ms: float, split: SplitRequest | None = None) -> None:
        """Queue a request; a restored one keeps its number.

        Args:
            split: Makes each `take` of the request give one record.
        """
        key, rows = request.signature, request.rows
        if split is not None:
            request.split, key, rows = split, _SPLIT + key, split.rows
        group = self._groups.get(key)
        if group is None:
            handling = self._handling_of(request.signature)
            group = _Group(handling, self._slow_ms) if split is None else _SplitGroup(handling, split.target)
            self._groups[key] = group
        if request.holds_order and not group.in_order:
            # A later one might expire, and be answered, meanwhile.
            group.in_order, group.may_be_slow = True, False
        if request.number < 0:
            request.number = self._next_number
        if request.number >= self._next_number:
            self._next_number = request.number + 1
        request.arrived_ms = now_ms
        cost = group.row_cost * rows if rows <= group.linear_rows else group.cost_of(request, group.rows)
        request.cost = cost
        group.work += cost
        cost_ms = cost * group.unit_ms
        is_first = group.add(request, self._policy.urgency(now_ms, request.deadline_ms, request.priority))
        self._waiting += 1
        self.size_bytes += request.size_bytes
        if group.target:
            self._away_ms[group.target] = self._away_ms.get(group.target, 0.0) + cost_ms
        else:
            self.backlog_ms += cost_ms
        if not request.stored:
            self._arrived.append(request)
        if request.deadline_ms != NO_DEADLINE_MS:
            run_rows = rows if split is None else split.run_rows
            latest_ms = request.deadline_ms - group.at_least_ms(run_rows)
            heappush(self._deadlines, (latest_ms, request.number, request))
        if is_first:
            self._update(key, group)

    def add_like(self, first: Request, requests: Sequence[Request], now_ms: float) -> None:
        """Queue requests of the signature, rows and priority of one that was added, without deadlines and not split."""
        group = self._groups[first.signature]
        rows = first.rows
        if group.target or rows > group.linear_rows:
            for request in requests:
                self.add(request, now_ms)
            return
        number, cost = self._next_number, first.cost
        urgency = self._policy.urgency(now_ms, first.deadline_ms, first.priority)
        arrived, add = self._arrived.append, group.add
        size_bytes = 0
        for request in requests:
            request.number, request.arrived_ms, request.cost = number, now_ms, cost
            number += 1
            size_bytes += request.size_bytes
            arrived(request)
            add(request, urgency)
        more = len(requests)
        self._next_number = number
        self._waiting += more
        self.size_bytes += size_bytes
        group.work += more * cost
        self.backlog_ms += more * cost * group.unit_ms

    def forget(self, number: int, *, is_marked: bool = False) -> None:
        """Note that a stored request left without being queued."""
        self._next_number = max(self._next_number, number + 1)
        self._departed.append(number)
        if is_marked:
            self._departed.append(begun_key(number))

    def take(self, now_ms: float, *, all_is_due: bool = False) -> Departure:
        """Remove and return the most urgent due batch and all expired requests.

        Args:
            now_ms: Unix time.
            all_is_due: True to ignore delays.
        """
        expired = self._expire(now_ms) if self._deadlines else []
        self._looked_at_ms = now_ms
        if self._delayed:
            self._end_delays(_NEVER if all_is_due else now_ms)
        if self._blocked:
            self._unblock(all_is_due=all_is_due)
        if not self._find_due(all_is_due=all_is_due):
            return Departure([], expired)
        signature = heappop(self._due)[1]
        group = self._groups[signature]
        group.due = None
        is_slow = group.may_be_slow and not all_is_due and group.is_slow()
        most_rows = 0
        if is_slow and not self._lane_has_room():
            is_slow, most_rows = False, group.quick_rows()
        if is_slow:
            self._running_costs = group.costs
            self._began_ms, self._may_end_ms = now_ms, now_ms + group.at_least_ms(group.next_rows())
        self._costs, self._revision = group.costs, group.revision
        batch = group.take(most_rows)
        if is_slow:
            self.running = batch
            self._note_work(batch, group)
        elif batch[0].split is None:
            self._note_departure(batch, group)
        self._sent = None
        if group.target:
            split = batch[0].split
            rows = sum([request.rows for request in batch]) if split is None else split.run_rows
            self._sent = group, rows, self._end_block(group, now_ms)
        self._update(signature, group)
        self._drop_stale()
        return Departure(batch, expired, is_slow)

    def end_slow(self) -> list[Request]:
        """Return the slow batch that has ended, which leaves state."""
        batch, self.running = self.running, []
        self._note_left(batch)
        self._is_stale = True
        return batch

    def follow_costs(self) -> bool:
        """Apply the costs that the last batch taught; return True if predictions changed."""
        costs = self._costs
        if not self._is_stale and (costs is None or costs.revision == self._revision):
            return False
        return self._follow_all()

    def _follow_all(self) -> bool:
        moved = [group for group in self._groups.values() if group.revision != group.costs.revision]
        for group in moved:
            before_ms = group.work_ms
            group.follow_costs()
            self._count_work(group, group.work_ms - before_ms)
        self._costs, self._is_stale = None, False
        return bool(moved)

    def note_blocked(self, waited_ms: float) -> None:
        """Learn from the time for which readers of the last batch made the task wait."""
        if self._sent is not None:
            group, rows, blocked_ms = self._sent
            group.note_wait(rows, blocked_ms + waited_ms)

    def _end_block(self, group: _Group, now_ms: float) -> float:
        """Return the wait for room of a group alone."""
        blocked_at_ms, group.blocked_at_ms = group.blocked_at_ms, None
        sent_at_ms, self._sent_at_ms[group.target] = self._sent_at_ms.get(group.target, 0.0), now_ms
        return 0.0 if blocked_at_ms is None else max(0.0, now_ms - max(blocked_at_ms, sent_at_ms))

    def _count_work(self, group: _Group, cost_ms: float) -> None:
        if group.target:
            self._away_ms[group.target] = self._away_ms.get(group.target, 0.0) + cost_ms
        else:
            self.backlog_ms += cost_ms

    def drop_split(self, request: Request) -> None:
        """Remove a split request."""
        request.gone = True
        self._drop([request])
        self._drop_stale()

    def settle_split(self, request: Request) -> None:
        """Note that a record of a split request left; remove the request after its last one."""
        if request.split is None or request.split.is_done:
            self.drop_split(request)
        elif not request.split.is_marked:
            self._begun[request.number] = request

    def slow_backlog_ms(self) -> float:
        """Return the share of `backlog_ms` that runs beside the task."""
        return sum(group.work_ms for group in self._groups.values() if group.is_slow())

    def take_last(
        self, is_wanted: Callable[[Sequence[Request]], bool], *, is_slow: bool | None = None
    ) -> list[Request]:
        """Remove and return the least urgent batch that is due and wanted.

        Args:
            is_slow: Looks only at groups whose next batch is slow, or is not.
        """
        due = [
            group
            for signature, group in self._groups.items()
            if (group.due is not None or signature in self._blocked)
            and not group.target
            and (is_slow is None or group.is_slow() == is_slow)
        ]
        for group in sorted(due, key=lambda each: each.least_urgent, reverse=True):
            batch = group.last_batch()
            for request in batch:
                request.cost_ms = request.cost * group.unit_ms
            if is_wanted(batch):
                for request in batch:
                    request.gone = True
                self._drop(batch)
                self._drop_stale()
                return batch
        return []

    def next_deadline(self) -> float | None:
        """Return the time of the next `take`: 0 for now; None for an empty queue."""
        if not self._groups and not self.running:
            return None
        if self._find_due():
            return 0.0
        while self._deadlines and self._deadlines[0][2].gone:
            heappop(self._deadlines)
        due_ms = min([self._groups[signature].leaves_at_ms() for signature in self._delayed], default=_NEVER)
        if self._blocked or self.running:
            due_ms = min(due_ms, self._looks_again_at_ms())
        return min(due_ms, self._deadlines[0][0]) if self._deadlines else due_ms

    def _looks_again_at_ms(self) -> float:
        looked_at_ms = self._looked_at_ms
        is_away = self.awaits_readers
        due_ms = looked_at_ms + (self._look_again_ms if is_away else _LANE_LOOK_MS)
        if not self.running:
            return due_ms
        pause_ms = max(_SLOW_LOOK_MS, (looked_at_ms - self._began_ms) * _SLOW_LOOK_SHARE)
        ends_at_ms = max(self._may_end_ms, looked_at_ms + pause_ms)
        return min(due_ms, ends_at_ms) if is_away else ends_at_ms

    @property
    def is_blocked(self) -> bool:
        """True if due requests wait for readers in other tasks, or for a slow batch."""
        return bool(self._blocked)

    @property
    def awaits_readers(self) -> bool:
        """True if due requests wait for readers in other tasks."""
        return any(self._groups[signature].target for signature in self._blocked)

    def let_pass(self) -> None:
        """Let batches leave for full readers, until `settle`."""
        self._lets_pass = True

    @property
    def awaits_lane(self) -> bool:
        """True if a slow batch is under way, or waits for one."""
        return bool(self.running) or any(not self._groups[signature].target for signature in self._blocked)

    def shed(self) -> list[Request]:
        """Remove and return the least urgent requests of a queue over a limit."""
        policy = self._policy
        shed: list[Request] = []
        self._follow_all()
        if self.size_bytes > policy.max_waiting_bytes:
            shed += self._shed(self._groups.values(), 0.0, self.size_bytes - SHED_TO_SHARE * policy.max_waiting_bytes)
        if self.backlog_ms > policy.max_backlog_ms:
            for is_slow in (False, True):
                groups = [each for each in self._groups.values() if not each.target and each.is_slow() == is_slow]
                shed += self._shed_above(groups, sum(group.work_ms for group in groups))
        for target, backlog_ms in list(self._away_ms.items()):
            shed += self._shed_above([each for each in self._groups.values() if each.target == target], backlog_ms)
        return shed

    def _shed_above(self, groups: Sequence[_Group], backlog_ms: float) -> list[Request]:
        most_ms = self._policy.max_backlog_ms
        if backlog_ms <= most_ms:
            return []
        # One may take longer than the limit.
        most = sum([group.waiting for group in groups]) - 1
        return self._shed(groups, backlog_ms - SHED_TO_SHARE * most_ms, 0.0, most)

    def _shed(
        self, groups: Iterable[_Group], backlog_ms: float, size_bytes: float, most: float = _NEVER
    ) -> list[Request]:
        shed: list[Request] = []
        for _, request in merge(*[group.from_last() for group in groups], key=itemgetter(0), reverse=True):
            if (backlog_ms <= 0 and size_bytes <= 0) or len(shed) >= most:
                break
            backlog_ms -= request.cost * self._groups[_group_key(request)].unit_ms
            size_bytes -= request.size_bytes
            request.gone = True
            shed.append(request)
        self._drop(shed)
        self._drop_stale()
        return shed

    def settle(self) -> QueueChanges:
        """Return the changes since the last settlement."""
        self._lets_pass = False
        arrived = [request for request in self._arrived if not request.gone]
        if self.running:
            arrived += [request for request in self.running if not request.stored]
        changes = QueueChanges(arrived, self._departed)
        for request in changes.arrived:
            request.stored = True
        if self._begun:
            changes = replace(changes, begun=[request for request in self._begun.values() if not request.gone])
            for request in changes.begun:
                if request.split is not None:
                    request.split.is_marked = True
            self._begun = {}
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
            # The window answers a request that has begun.
            return [request for request in expired if not _has_begun(request)]
        return expired

    def _drop(self, requests: list[Request]) -> None:
        by_key: dict[bytes, list[Request]] = {}
        for request in requests:
            by_key.setdefault(_group_key(request), []).append(request)
        for key, of_group in by_key.items():
            group = self._groups[key]
            self._note_departure(of_group, group)
            group.drop(of_group)
            self._update(key, group)

    def _note_departure(self, requests: list[Request], group: _Group) -> None:
        self._note_work(requests, group)
        self._note_left(requests)

    def _note_work(self, requests: list[Request], group: _Group) -> None:
        cost = 0.0
        for request in requests:
            cost += request.cost
        group.work -= cost
        self._count_work(group, -cost * group.unit_ms)

    def _note_left(self, requests: list[Request]) -> None:
        self._waiting -= len(requests)
        for request in requests:
            self.size_bytes -= request.size_bytes
            if request.stored:
                self._departed.append(request.number)
            if request.split is not None:
                if request.stored and request.split.is_marked:
                    self._departed.append(begun_key(request.number))
                request.split.release()
        if not self._waiting:
            self.backlog_ms = 0.0  # The rest is rounding.
            self._away_ms.clear()
            self._deadlines.clear()

    def _update(self, signature: bytes, group: _Group) -> None:
        if group.most_urgent is None:
            del self._groups[signature]
            self._delayed.discard(signature)
            self._blocked.discard(signature)
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

    def _unblock(self, *, all_is_due: bool) -> None:
        for signature in [each for each in self._blocked if self._has_room(self._groups[each], all_is_due=all_is_due)]:
            self._blocked.discard(signature)
            self._update(signature, self._groups[signature])

    def _has_room(self, group: _Group, *, all_is_due: bool) -> bool:
        if group.target:
            return all_is_due or self._lets_pass or group.has_room()
        if self._lane is None or all_is_due or not group.is_slow() or self._lane_has_room():
            return True
        # A smaller batch needs no lane; of the model that runs, it would take that one's processor.
        return bool(self.running) and group.costs is not self._running_costs and group.quick_rows() > 0

    def _lane_has_room(self) -> bool:
        return not self.running and self._lane is not None and self._lane.has_room

    def _find_due(self, *, all_is_due: bool = False) -> bool:
        """Drop stale and blocked entries; return True if a group is due."""
        due = self._due
        while due:
            signature = due[0][1]
            group = self._groups.get(signature)
            if group is not None and group.due == due[0][0]:
                if not group.is_gated or self._has_room(group, all_is_due=all_is_due):
                    return True
                self._blocked.add(signature)
                group.due = None
                if group.blocked_at_ms is None:
                    group.blocked_at_ms = self._looked_at_ms
            heappop(due)
        return False

    def _drop_stale(self) -> None:
        if len(self._deadlines) > 2 * self._waiting + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].gone]
            heapify(self._deadlines)
        if len(self._due) > 2 * len(self._groups) + _SLACK:
            self._due = [(group.due, signature) for signature, group in self._groups.items() if group.due is not None]
            heapify(self._due)


def _group_key(request: Request) -> bytes:
    return request.signature if request.split is None else _SPLIT + request.signature
