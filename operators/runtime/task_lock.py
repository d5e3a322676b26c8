"""Mutual exclusion between a task's own batches and batches that other tasks offloaded to it.

The serve and the infer operator of a task are two threads that share one processor, so one batch runs at a time. An
offloaded batch waits until the task's own queue is empty, or until it has waited long enough. The wait fills the
channel, so the partitioner sends the next batch to a less busy task.

The wait grows with the time that the last offloaded batch took: a busy task spends at most a fifth of its time on
offloaded batches. With a fixed wait the slowest task would mostly run other tasks' work.

    own          ##########################      ################
    offloaded              |took|--- 4 x took --->|took|---
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

#: The shortest wait of an offloaded batch, and the longest after the one before it.
_PATIENCE_S, _MOST_PATIENCE_S = 0.05, 1.0
#: The wait after an offloaded batch, for each second that it took.
_PATIENCE_S_PER_S = 4.0


class _OwnBatch:
    """Context manager of the task's own batches; reused, for it is entered once per batch."""

    __slots__ = ("_lock",)

    def __init__(self, lock: "TaskLock") -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.enter_own_batch()

    def __exit__(self, *_: object) -> None:
        self._lock.leave_batch()


class TaskLock:
    """The lock of one task."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free = threading.Condition(self._mutex)
        self._rested = threading.Condition(self._mutex)
        self._is_busy = False
        self._is_taken = False
        self._offloaded_is_next = False
        self._not_before_s = 0.0
        self._own_batch = _OwnBatch(self)

    def own_batch(self) -> AbstractContextManager[None]:
        """Runs one batch of the task's own, after an offloaded one that runs or has waited long enough."""
        return self._own_batch

    @contextmanager
    def offloaded_batch(self) -> Iterator[None]:
        """Runs one offloaded batch, once the task is idle or the batch has waited long enough."""
        with self._mutex:
            end_s = max(time.monotonic() + _PATIENCE_S, self._not_before_s)
            while self._is_busy and (left_s := end_s - time.monotonic()) > 0:
                self._rested.wait(left_s)
            self._offloaded_is_next = True
            while self._is_taken:
                self._free.wait()
            self._is_taken, self._offloaded_is_next = True, False
        began_s = time.monotonic()
        try:
            yield
        finally:
            ended_s = time.monotonic()
            self._not_before_s = ended_s + min((ended_s - began_s) * _PATIENCE_S_PER_S, _MOST_PATIENCE_S)
            self.leave_batch()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Lets offloaded batches run while the task waits for the exchange."""
        was_busy = self._is_busy
        self.rest()
        try:
            yield
        finally:
            with self._mutex:
                self._is_busy = was_busy

    def rest(self) -> None:
        """Ends the task's own work until its next batch."""
        if self._is_busy:
            with self._mutex:
                self._is_busy = False
                self._rested.notify_all()

    def enter_own_batch(self) -> None:
        """Takes the lock for an own batch; see `own_batch`."""
        with self._mutex:
            self._is_busy = True
            while self._is_taken or self._offloaded_is_next:
                self._free.wait()
            self._is_taken = True

    def leave_batch(self) -> None:
        """Gives the lock back."""
        with self._mutex:
            self._is_taken = False
            self._free.notify_all()
