"""Whose turn it is: the requests of others wait for the task's own, but not for ever; one batch runs at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event, Thread

import pytest

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


def test_others_wait_until_the_lane_is_empty() -> None:
    turn = TaskLock()
    seen: list[bool] = []

    def take() -> None:
        with turn.of_others():
            seen.append(turn.lane_is_busy)

    turn.lane_is_busy = True
    waiting = Thread(target=take)
    waiting.start()
    turn.lane_is_busy = False
    waiting.join()
    assert seen == [False]


def test_others_have_waited_enough_at_some_time() -> None:
    turn = TaskLock()
    turn.lane_is_busy = True
    with turn.of_others():
        assert turn.lane_is_busy


def test_one_batch_runs_at_a_time_whosever_it_is() -> None:
    turn = TaskLock()
    for first, second in ((turn.of_lane, turn.of_others), (turn.of_others, turn.of_lane)):
        running = Batch(first)
        assert running.runs.wait(5)
        waiting = Batch(second)
        assert not waiting.runs.wait(0.05)
        running.end()
        assert waiting.runs.wait(5)
        waiting.end()


def test_a_lane_that_always_has_a_next_batch_lets_others_in_between() -> None:
    turn = TaskLock()
    turn.lane_is_busy = True
    others = Batch(turn.of_others)
    others.may_end.set()
    while not others.runs.is_set():
        with turn.of_lane():
            pass
    others.end()


def test_a_batch_that_fails_gives_the_turn_back() -> None:
    turn = TaskLock()
    for each in (turn.of_lane, turn.of_others):
        with pytest.raises(ValueError, match="a bad batch"), each():
            raise ValueError("a bad batch")
    with turn.of_lane():
        pass
