"""Mutual exclusion between a task's own batches and offloaded ones of other tasks (ADR 0010).

An offloaded batch waits until the task is idle, or long enough. Its channel fills up meanwhile, so the next batch goes
to a less busy task. Waits grow with batch times: a busy task spends at most a fifth of its time on offloaded batches.

    own          ##########################      ################
    offloaded              |took|--- 4 x took --->|took|---
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

#: Shortest wait, and longest after a batch.
_PATIENCE_S, _MOST_PATIENCE_S = 0.05, 1.0
#: Wait per second of the last batch.
_PATIENCE_S_PER_S = 4.0


class _OwnBatch:
    """Reusable context manager of own batches."""

    __slots__ = ("_lock",)

    def __init__(self, lock: "TaskLock") -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.enter_own_batch()

    def __exit__(self, *_: object) -> None:
        self._lock.leave_batch()


class TaskLock:
    """Lock of one task."""

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
        """Run one own batch."""
        return self._own_batch

    @contextmanager
    def offloaded_batch(self) -> Iterator[None]:
        """Run an offloaded batch after its wait."""
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
        """Let offloaded batches run meanwhile."""
        was_busy = self._is_busy
        self.rest()
        try:
            yield
        finally:
            with self._mutex:
                self._is_busy = was_busy

    def rest(self) -> None:
        """Let offloaded batches run before the next own one."""
        if self._is_busy:
            with self._mutex:
                self._is_busy = False
                self._rested.notify_all()

    def enter_own_batch(self) -> None:
        """Take the lock for an own batch."""
        with self._mutex:
            self._is_busy = True
            while self._is_taken or self._offloaded_is_next:
                self._free.wait()
            self._is_taken = True

    def leave_batch(self) -> None:
        """Give the lock back."""
        with self._mutex:
            self._is_taken = False
            self._free.notify_all()
