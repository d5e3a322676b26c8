"""Slow batches run beside the task, one at a time, in turn with those of other tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from anabranch.operators.core.execution.inference_task import RanApart
from anabranch.operators.runtime import slow_batch_thread
from anabranch.operators.runtime.slow_batch_thread import SlowBatchThread


class Run:
    """A batch that runs until the test ends it, or for ten seconds if the test fails."""

    def __init__(self) -> None:
        self.began, self.may_end = Event(), Event()

    def __call__(self) -> RanApart:
        self.began.set()
        self.may_end.wait(10)
        return RanApart(1.0)


@contextmanager
def offloaded(lane: SlowBatchThread) -> Iterator[Run]:
    """A batch of another task, which waits for its turn."""
    run = Run()

    def turn() -> None:
        with lane.offloaded_batch():
            run()

    thread = Thread(target=turn, daemon=True)
    thread.start()
    try:
        yield run
    finally:
        run.may_end.set()
        thread.join(10)
    assert not thread.is_alive()


def ended(lane: SlowBatchThread, at_most_s: float = 10.0) -> RanApart:
    """The own batch, after its end."""
    for _ in range(int(at_most_s * 100)):
        if (ran := lane.take()) is not None:
            return ran
        lane.wait(10)
    raise AssertionError("the batch does not end")


def until(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        Event().wait(0.01)
    raise AssertionError("it stays false")


def test_lane_own_batch_runs_beside_the_task() -> None:
    lane, run = SlowBatchThread(), Run()
    lane.start(run)
    assert run.began.wait(10)
    assert not lane.has_room
    assert lane.take() is None
    run.may_end.set()
    assert ended(lane) == RanApart(1.0)
    assert lane.take() is None
    until(lambda: lane.has_room)


def test_lane_own_batch_has_no_room_until_it_is_taken() -> None:
    lane, run = SlowBatchThread(), Run()
    run.may_end.set()
    lane.start(run)
    until(lambda: lane._ended is not None)
    assert not lane.has_room
    ended(lane)
    until(lambda: lane.has_room)


def test_lane_batches_of_both_kinds_run_one_at_a_time() -> None:
    lane, own = SlowBatchThread(), Run()
    lane.start(own)
    assert own.began.wait(10)
    with offloaded(lane) as other:
        assert not other.began.wait(0.05)
        own.may_end.set()
        assert other.began.wait(10)
        ended(lane)
        assert not lane.has_room


def test_lane_offloaded_batches_leave_turns_to_own_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_batch_thread, "_PATIENCE_S", 60.0)
    lane, own = SlowBatchThread(), Run()
    with offloaded(lane) as first, offloaded(lane) as second:
        until(lambda: first.began.is_set() or second.began.is_set())
        assert not lane.has_room, "the next turn is the task's"
        (first if first.began.is_set() else second).may_end.set()
        until(lambda: lane.has_room)
        lane.start(own)
        assert own.began.wait(10)
        own.may_end.set()
        until(lambda: first.began.is_set() and second.began.is_set())


def test_lane_turn_that_no_own_batch_takes_is_given_up() -> None:
    lane = SlowBatchThread()
    with offloaded(lane) as first:
        assert first.began.wait(10)
        assert not lane.has_room
    with offloaded(lane) as second:
        assert second.began.wait(10)


def test_lane_failed_offloaded_batch_gives_its_turn_back() -> None:
    lane = SlowBatchThread()
    with pytest.raises(ValueError, match="a bad batch"), lane.offloaded_batch():
        raise ValueError("a bad batch")
    assert lane.has_room


def test_lane_wait_without_a_batch_returns_at_once() -> None:
    SlowBatchThread().wait(3_600_000)
