"""TaskLock: one batch runs at a time, and offloaded ones wait for the task's own, for a limited time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event, Thread

import pytest

from anabranch.operators.runtime import task_lock
from anabranch.operators.runtime.task_lock import TaskLock


class Batch(Thread):
    """A batch that runs until the test ends it."""

    def __init__(self, enter: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(daemon=True)
        self._enter = enter
        self.runs, self.may_end = Event(), Event()
        self.start()

    def run(self) -> None:
        with self._enter():
            self.runs.set()
            self.may_end.wait()

    def end(self) -> None:
        self.may_end.set()
        self.join()


def busy() -> TaskLock:
    lock = TaskLock()
    with lock.own_batch():
        pass
    return lock


@pytest.mark.parametrize("way", ["rest", "idle"])
def test_offloaded_batch_runs_once_the_task_rests(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lock, "_PATIENCE_S", 60.0)
    lock = busy()
    batch = Batch(lock.offloaded_batch)
    assert not batch.runs.wait(0.05)
    if way == "rest":
        lock.rest()
        assert batch.runs.wait(5)
    else:
        with lock.idle():
            assert batch.runs.wait(5)
    batch.end()


def test_idle_ends_with_a_busy_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lock, "_PATIENCE_S", 60.0)
    lock = busy()
    with lock.idle():
        pass
    batch = Batch(lock.offloaded_batch)
    assert not batch.runs.wait(0.05)
    lock.rest()
    assert batch.runs.wait(5)
    batch.end()


def test_offloaded_batch_runs_although_the_task_is_busy() -> None:
    with busy().offloaded_batch():
        pass


def test_lock_two_batches_run_one_at_a_time() -> None:
    lock = TaskLock()
    for first, second in ((lock.own_batch, lock.offloaded_batch), (lock.offloaded_batch, lock.own_batch)):
        running = Batch(first)
        assert running.runs.wait(5)
        waiting = Batch(second)
        assert not waiting.runs.wait(0.05)
        running.end()
        assert waiting.runs.wait(5)
        waiting.end()


def test_own_batches_let_an_offloaded_one_in_between() -> None:
    lock = TaskLock()
    others = Batch(lock.offloaded_batch)
    others.may_end.set()
    while not others.runs.is_set():
        with lock.own_batch():
            pass
    others.end()


def test_failed_batch_gives_the_lock_back() -> None:
    lock = TaskLock()
    for each in (lock.own_batch, lock.offloaded_batch):
        with pytest.raises(ValueError, match="a bad batch"), each():
            raise ValueError("a bad batch")
    with lock.own_batch():
        pass
