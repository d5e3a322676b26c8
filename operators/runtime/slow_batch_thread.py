"""Runs the slow batches of a task beside its thread, in turn with offloaded ones (ONNX Runtime releases the GIL).

task's thread    start |--- reads, quick batches, checkpoints ---| take --> outputs
other threads          |### own ######|### offloaded ######|### own
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anabranch.operators.core.execution.inference_task import RanApart

#: Longest time for which an offloaded batch leaves the turn to an own one.
_PATIENCE_S = 0.05


class SlowBatchThread:
    """The slow batches of one task, one at a time."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._is_taken = False
        self._own_is_next = False
        self._is_under_way = False
        self._ended: RanApart | None = None

    @property
    def has_room(self) -> bool:
        """True if an own batch may start; otherwise the next turn is its."""
        if self._is_under_way:
            return False
        self._own_is_next = self._is_taken
        return not self._is_taken

    def start(self, run: Callable[[], RanApart]) -> None:
        """Start an own batch, which must not raise."""
        self._is_under_way = True
        threading.Thread(target=self._run, args=(run,), name="anabranch-slow-batch", daemon=True).start()

    def take(self) -> RanApart | None:
        """Return the own batch, once it has ended."""
        ended = self._ended
        if ended is not None:
            self._ended, self._is_under_way = None, False
        return ended

    def wait(self, timeout_ms: float) -> None:
        """Wait for the end of a batch."""
        with self._mutex:
            if self._is_taken or (self._is_under_way and self._ended is None):
                self._changed.wait(timeout_ms / 1000)

    @contextmanager
    def offloaded_batch(self) -> Iterator[None]:
        """Run a slow batch of another task."""
        with self._mutex:
            self._changed.wait_for(self._is_free)
            self._changed.wait_for(self._is_for_offloaded, _PATIENCE_S)
            self._changed.wait_for(self._is_free)
            self._is_taken, self._own_is_next = True, False
        try:
            yield
        finally:
            self._leave()

    def _run(self, run: Callable[[], RanApart]) -> None:
        with self._mutex:
            self._changed.wait_for(self._is_free)
            self._is_taken, self._own_is_next = True, False
        ended = run()
        self._leave(ended)

    def _is_free(self) -> bool:
        return not self._is_taken

    def _is_for_offloaded(self) -> bool:
        return not self._own_is_next

    def _leave(self, ended: RanApart | None = None) -> None:
        with self._mutex:
            self._ended = ended or self._ended
            self._is_taken = False
            self._changed.notify_all()
