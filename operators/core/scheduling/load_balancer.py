"""Decides which batches a late task hands to other tasks.

    due?       as many batches leave for each batch that runs here as the window says
    which?     the least urgent: they would wait longest, and the exchange keeps no order
    window     grows while the exchange takes batches at once, shrinks while it blocks the task
    full       it blocks the task for longer than a batch takes: nothing leaves for a while

A task sees nothing of other tasks but that: a busy task leaves offloaded batches in its channel (`task_lock`), and the
exchange gives a batch to the task with the shortest channel. In a balanced system hardly any batch travels.
"""

from collections.abc import Sequence

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.records import NO_DEADLINE_MS

#: A batch stays that would not gain so many times what its way costs: so much, and so much for each MB.
_GAIN = 10.0
_WAY_MS, _WAY_MS_PER_MB = 0.2, 1.0
#: What must start within so long is not sent to lie behind others.
_HURRY_MS = 100.0
#: What the exchange takes within so long, it takes at once.
_SOON_MS = 5.0
#: The exchange is full if it keeps a task for longer than a batch takes, and this.
_FULL_MS = 20.0
_GROWTH, _SHRINKING, _LEAST_WINDOW = 1.25, 0.7, 0.25
#: Batches for each other task, for one that is run here: what a slow task needs beside quick ones.
_MOST_PER_TASK = 8.0
#: How long nothing leaves once the exchange was full: longer each time, up to a limit; and where nothing is worth it.
_LEAST_PAUSE_MS, _MOST_PAUSE_MS, _NOTHING_MS = 50.0, 2_000.0, 10.0


class LoadBalancer:
    """What one task does with its batches.

    Args:
        policy: With more work than its `offload_backlog_ms` queued, a task is behind.
        tasks: Number of tasks of the operator.
        learns: Whether `note_wait` is called. If not, the window stays at its most: who is busy cannot be told, and a
            share of what leaves comes back.
    """

    def __init__(self, policy: SchedulingPolicy, tasks: int, *, learns: bool = True) -> None:
        self._backlog_ms = policy.offload_backlog_ms
        self._most = (tasks - 1) * _MOST_PER_TASK
        self._learns = learns
        self._window = float(tasks - 1) if learns else self._most
        #: Batches that may leave before one is run here.
        self._credit = self._window
        self._pause_ms = _LEAST_PAUSE_MS
        self._paused_until_ms = 0.0
        self._given_ms = 0.0

    def is_due(self, backlog_ms: float, now_ms: float) -> bool:
        """Whether a batch should leave before one is run here.

        Args:
            backlog_ms: Work in hand.
            now_ms: Unix time.
        """
        return backlog_ms > self._backlog_ms and self._credit >= 1 and now_ms >= self._paused_until_ms

    def is_worth(self, unit: Sequence[Request], backlog_ms: float, now_ms: float) -> bool:
        """Whether it pays to send this batch, of all the work in hand."""
        run_ms = _run_ms(unit)
        size_mb = sum([request.size_bytes for request in unit]) / 1e6
        pays = run_ms >= _GAIN * (_WAY_MS + _WAY_MS_PER_MB * size_mb)
        return pays and backlog_ms - run_ms > self._backlog_ms and not _is_urgent(unit, now_ms + run_ms + _HURRY_MS)

    def note_run(self) -> None:
        """Learns that a batch is run here."""
        if self._credit < 1:
            self._credit += self._window

    def note_given(self, unit: Sequence[Request], now_ms: float) -> None:
        """Learns which batch leaves; empty where none was worth it."""
        if unit:
            self._credit -= 1
            self._given_ms = _run_ms(unit)
        else:
            self._paused_until_ms = now_ms + _NOTHING_MS

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        """Learns how long the exchange blocked the task after an offloaded batch."""
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


def _run_ms(unit: Sequence[Request]) -> float:
    return sum([request.cost_ms for request in unit])


def _is_urgent(unit: Sequence[Request], at_ms: float) -> bool:
    return any(request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms < at_ms for request in unit)
