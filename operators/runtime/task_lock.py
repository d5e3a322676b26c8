"""Whose turn it is in a task: its own requests go before those of others, for a while.

The chained and the exchange operator of a task are two threads with one processor between them: one of them runs a
batch at a time, or a task that is behind would take a second processor from those who could help it. What other tasks
hand over is for one that has time: so it lies until the task's own lane is empty, or it has lain long enough. That it
lies is also what tells the exchange to send the next batch elsewhere.

Long enough depends on what it takes: a task that is busy gives others a fifth of its time. If it were the same for
all, who takes long for a batch, by far the busiest, would spend most of its time on what others gave it.

    lane       ##########################      ################
    exchange           |took|--- 4 x took --->|took|---
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

_lock = threading.Lock()
_turns: WeakValueDictionary[tuple[str, int], "TaskLock"] = WeakValueDictionary()

#: So long do others wait at least, and at most after their last batch: their requests may have waited before.
_PATIENCE_S, _MOST_PATIENCE_S = 0.05, 1.0
#: How long they wait after a batch of theirs, for each second that it took.
_PATIENCE_S_PER_S = 4.0
_POLL_S = 0.001


class TaskLock:
    """Of one task.

    Attributes:
        lane_is_busy: Whether the task has requests of its own to run.
    """

    def __init__(self) -> None:
        self.lane_is_busy = False
        self._not_before_s = 0.0
        self._change = threading.Condition()
        self._is_taken = False
        self._others_are_next = False

    @contextmanager
    def of_lane(self) -> Iterator[None]:
        """A batch of the task's own; waits for one of others that runs, or has waited long enough."""
        with self._change:
            while self._is_taken or self._others_are_next:
                self._change.wait()
            self._is_taken = True
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def of_others(self) -> Iterator[None]:
        """A batch of others; waits until the task has time for it."""
        end_s = max(time.monotonic() + _PATIENCE_S, self._not_before_s)
        while self.lane_is_busy and time.monotonic() < end_s:
            time.sleep(_POLL_S)
        with self._change:
            self._others_are_next = True
            while self._is_taken:
                self._change.wait()
            self._is_taken, self._others_are_next = True, False
        began_s = time.monotonic()
        try:
            yield
        finally:
            ended_s = time.monotonic()
            self._not_before_s = ended_s + min((ended_s - began_s) * _PATIENCE_S_PER_S, _MOST_PATIENCE_S)
            self._leave()

    def _leave(self) -> None:
        with self._change:
            self._is_taken = False
            self._change.notify_all()


def lock_of(job: str, task: int) -> TaskLock:
    """What the operators of a task share, where they live in one process.

    Args:
        job: No two jobs have the same.
        task: Its index.
    """
    with _lock:
        turn = _turns.get((job, task))
        if turn is None:
            turn = _turns[job, task] = TaskLock()
        return turn
