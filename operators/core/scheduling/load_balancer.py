"""Selects batches that a late task hands to other tasks.

A batch leaves if a task will take it soon. Without `credits`, a window limits the batches that leave per batch that
runs here: it shrinks while the exchange blocks.
"""

from collections.abc import Sequence

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.records import NO_DEADLINE_MS

#: Least ratio of run to transfer time.
_GAIN = 10.0
_WAY_MS, _WAY_MS_PER_MB = 0.2, 1.0
#: A batch with an earlier deadline stays.
_HURRY_MS = 100.0
#: Longest wait that counts as none.
_SOON_MS = 5.0
#: Wait beyond the run that counts as a full exchange.
_FULL_MS = 20.0
_GROWTH, _SHRINKING, _LEAST_WINDOW = 1.25, 0.7, 0.25
#: Largest window per other task: of quick batches, and of slow ones, of which it runs every second.
_MOST_PER_TASK, _MOST_SLOW_PER_TASK = 8.0, 1.0
#: Pauses after a full exchange, and without a worthy batch.
_LEAST_PAUSE_MS, _MOST_PAUSE_MS, _NOTHING_MS = 50.0, 2_000.0, 10.0


class OtherTasks:
    """The tasks to which one task hands batches."""

    def __init__(self, readers: Credits, own: int) -> None:
        self._readers = readers
        self._own = own

    def take_soon(self, now_ms: float) -> bool:
        """Tell if a task has one batch at most."""
        readers = self._readers
        return readers.has_room and readers.wait_ms(now_ms, self._own) <= readers.run_ms + _SOON_MS


class LoadBalancer:
    """The offloading of one of `tasks` tasks.

    Args:
        policy: Its `offload_backlog_ms` defines a late task.
        others: Their room, with credits.
        learns: False without calls of `note_wait`.
        most_per_task: Largest window per other task.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        tasks: int,
        others: OtherTasks | None = None,
        *,
        learns: bool = True,
        most_per_task: float = _MOST_PER_TASK,
    ) -> None:
        self._backlog_ms = policy.offload_backlog_ms
        self._most = (tasks - 1) * most_per_task
        self._others = others
        self._learns = learns and others is None
        self._window = float(tasks - 1) if self._learns else self._most
        #: Batches that may leave before one runs here.
        self._credit = self._window
        self._pause_ms = _LEAST_PAUSE_MS
        self._paused_until_ms = 0.0
        self._given_ms = 0.0

    def is_due(self, backlog_ms: float, now_ms: float) -> bool:
        """Decide whether a batch should leave before one runs here."""
        return backlog_ms > self._backlog_ms and now_ms >= self._paused_until_ms and self._has_room(now_ms)

    def _has_room(self, now_ms: float) -> bool:
        return self._credit >= 1 if self._others is None else self._others.take_soon(now_ms)

    def is_worth(self, batch: Sequence[Request], backlog_ms: float, now_ms: float) -> bool:
        """Decide whether this batch gains from leaving."""
        run_ms = _run_ms(batch)
        size_mb = sum([request.size_bytes for request in batch]) / 1e6
        pays = run_ms >= _GAIN * (_WAY_MS + _WAY_MS_PER_MB * size_mb)
        return pays and backlog_ms - run_ms > self._backlog_ms and not _is_urgent(batch, now_ms + run_ms + _HURRY_MS)

    def note_run(self) -> None:
        """Count a batch that runs here."""
        if self._credit < 1:
            self._credit += self._window

    def note_given(self, batch: Sequence[Request], now_ms: float) -> None:
        """Count the batch that leaves; empty for none."""
        if batch:
            self._credit -= 1
            self._given_ms = _run_ms(batch)
        else:
            self._paused_until_ms = now_ms + _NOTHING_MS

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        """Adapt to a wait after an offload."""
        if not self._learns:
            return
        if waited_ms <= _SOON_MS:
            self._window = min(self._window * _GROWTH, self._most)
        else:
            self._window = max(self._window * _SHRINKING, _LEAST_WINDOW)
            self._credit = min(self._credit, self._window)
        if waited_ms <= _FULL_MS + self._given_ms:
            self._pause_ms = max(self._pause_ms / 2, _LEAST_PAUSE_MS)
        else:
            self._paused_until_ms = now_ms + self._pause_ms
            self._pause_ms = min(self._pause_ms * 2, _MOST_PAUSE_MS)


class LaneBalancers:
    """The offloading of one task: a `LoadBalancer` for its quick batches, and one for its slow ones."""

    def __init__(
        self, policy: SchedulingPolicy, tasks: int, others: OtherTasks | None = None, *, learns: bool = True
    ) -> None:
        self._quick = LoadBalancer(policy, tasks, others, learns=learns)
        self._slow = LoadBalancer(policy, tasks, others, learns=learns, most_per_task=_MOST_SLOW_PER_TASK)
        self._given_from = self._quick
        self.least_backlog_ms = policy.offload_backlog_ms

    def of(self, *, is_slow: bool) -> LoadBalancer:
        """Return the offloading of one kind of batches."""
        return self._slow if is_slow else self._quick

    def note_given(self, batch: Sequence[Request], now_ms: float, *, is_slow: bool) -> None:
        """See `LoadBalancer.note_given`."""
        self._given_from = self.of(is_slow=is_slow)
        self._given_from.note_given(batch, now_ms)

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        """Adapt to a wait after the last offload."""
        self._given_from.note_wait(waited_ms, now_ms)


def _run_ms(batch: Sequence[Request]) -> float:
    return sum([request.cost_ms for request in batch])


def _is_urgent(batch: Sequence[Request], at_ms: float) -> bool:
    return any(request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms < at_ms for request in batch)
