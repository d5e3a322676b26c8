"""Whose turn it is in a task: its own requests go before those of others, for a while.

The chained and the exchange operator of a task are two threads with one processor between them. What other tasks hand
over is for one that has time: so it lies until the task's own lane is empty, or it has lain long enough. That it lies
is also what tells the exchange to send the next batch elsewhere.
"""

import threading
import time
from weakref import WeakValueDictionary

_lock = threading.Lock()
_turns: WeakValueDictionary[tuple[str, int], "Turn"] = WeakValueDictionary()

#: So long at most do others wait: their requests may have waited before.
_PATIENCE_S = 0.05
_POLL_S = 0.001


class Turn:
    """Of one task.

    Attributes:
        lane_is_busy: Whether the task has requests of its own to run.
    """

    def __init__(self) -> None:
        self.lane_is_busy = False

    def wait(self) -> None:
        """Returns once the task has time for the requests of others."""
        end_s = time.monotonic() + _PATIENCE_S
        while self.lane_is_busy and time.monotonic() < end_s:
            time.sleep(_POLL_S)


def turn_of(job: str, task: int) -> Turn:
    """What the operators of a task share, where they live in one process.

    Args:
        job: No two jobs have the same.
        task: Its index.
    """
    with _lock:
        turn = _turns.get((job, task))
        if turn is None:
            turn = _turns[job, task] = Turn()
        return turn
