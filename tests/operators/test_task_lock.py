"""Whose turn it is: the requests of others wait for the task's own, but not for ever; one batch runs at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event, Thread

import pytest

from anabranch.operators.runtime import task_lock
from anabranch.operators.runtime.task_lock import TaskLock, lock_of


class Batch(Thread):
    """One batch that runs until it is told to end."""

    def __init__(self, turn: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(daemon=True)
        self._turn = turn
        self.runs, self.may_end = Event(), Event()
        self.start()

    def run(self) -> None:
        with self._turn():
            self.runs.set()
            self.may_end.wait()

    def end(self) -> None:
        self.may_end.set()
        self.join()


def test_the_operators_of_a_task_share_its_turn_and_others_have_theirs() -> None:
    turn = lock_of("job", 0)
    assert lock_of("job", 0) is turn
    assert lock_of("job", 1) is not turn
    assert lock_of("other", 0) is not turn


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


def test_offloaded_batch_does_not_wait_for_ever() -> None:
    with busy().offloaded_batch():
        pass


def test_one_batch_runs_at_a_time_whosever_it_is() -> None:
    turn = TaskLock()
    for first, second in ((turn.own_batch, turn.offloaded_batch), (turn.offloaded_batch, turn.own_batch)):
        running = Batch(first)
        assert running.runs.wait(5)
        waiting = Batch(second)
        assert not waiting.runs.wait(0.05)
        running.end()
        assert waiting.runs.wait(5)
        waiting.end()


def test_a_lane_that_always_has_a_next_batch_lets_others_in_between() -> None:
    turn = TaskLock()
    others = Batch(turn.offloaded_batch)
    others.may_end.set()
    while not others.runs.is_set():
        with turn.own_batch():
            pass
    others.end()


def test_a_batch_that_fails_gives_the_turn_back() -> None:
    turn = TaskLock()
    for each in (turn.own_batch, turn.offloaded_batch):
        with pytest.raises(ValueError, match="a bad batch"), each():
            raise ValueError("a bad batch")
    with turn.own_batch():
        pass
