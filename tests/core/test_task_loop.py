"""The scheduler of a task, on a scripted pipeline and clock."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from anabranch.operators.core.outputs import Answer, Offload, Shard
from anabranch.operators.core.scheduling.batch_queue import QueueChanges
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.task_loop import Settlement, TaskLoop

KEY, FOREIGN = 7, 8
ANSWER = [Answer(b"", b"")]


class Script:
    """A pipeline, a queue, a balancer, a lock and a clock: every batch takes 4 ms."""

    def __init__(self, *batches: list[Any], slice_ms: float = 10.0, flush_s: float = 0.0) -> None:
        self.batches = list(batches)
        self.now_ms = 1000.5
        self.leaves_at_once: list[Any] = []
        self.is_full = False
        self.log: list[str] = []
        self.waits: list[float] = []
        self.made = 0
        itself: Any = self
        policy = SchedulingPolicy(work_slice_ms=slice_ms)
        self.loop = TaskLoop(KEY, itself, list, self, lambda: flush_s, lambda: self.now_ms, policy, itself)

    def new_queue(self) -> Any:
        self.made += 1
        return self

    def restore(self, held: Iterable[Any], queue: Any, now_ms: float) -> list[Any]:
        return []

    def admit(self, frame: Any, queue: Any, now_ms: float) -> list[Any]:
        return self.leaves_at_once

    def run_next(
        self, queue: Any, now_ms: float, balancer: Any = None, *, all_is_due: bool = False
    ) -> list[Any] | None:
        if not self.batches:
            return None
        self.now_ms += 4
        return self.batches.pop(0)

    def settle(self) -> QueueChanges:
        return QueueChanges([], [])

    def next_deadline(self) -> float | None:
        return 0.0 if self.batches else None

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        self.waits.append(waited_ms)

    @contextmanager
    def own_batch(self) -> Iterator[None]:
        self.log.append("batch")
        yield

    @contextmanager
    def idle(self) -> Iterator[None]:
        self.log.append("idle")
        yield
        self.log.append("busy")

    def rest(self) -> None:
        self.log.append("rest")


def test_loop_frame_runs_batches_until_slice_is_over() -> None:
    script = Script(*[ANSWER] * 5)
    *outputs, settlement = script.loop.on_frame(b"")
    # A third batch would end 12 ms after the start.
    assert outputs == [ANSWER] * 2
    assert settlement == Settlement([], [], 1008, end_at_ms=1000)


def test_loop_full_task_works_on_and_ignores_due_timer() -> None:
    script = Script(*[ANSWER] * 5)
    list(script.loop.on_frame(b""))
    assert list(script.loop.on_frame(b"")) == []
    script.is_full = True
    assert list(script.loop.on_frame(b"")) == [ANSWER] * 3


def test_loop_superseded_timer_does_nothing() -> None:
    script = Script(*[ANSWER] * 5)
    list(script.loop.on_frame(b""))
    assert list(script.loop.on_timer(KEY, 900)) == []
    assert list(script.loop.on_timer(KEY, 1008))[:1] == [ANSWER]


def test_loop_wake_up_is_in_the_past_once_no_frames_come() -> None:
    script = Script(*[ANSWER] * 9)
    list(script.loop.on_frame(b""))
    for wake_at_ms, expected_ms in ((1008, 1016), (1016, 1023)):
        *_, settlement = script.loop.on_timer(KEY, wake_at_ms)
        assert isinstance(settlement, Settlement)
        assert settlement.wake_at_ms == expected_ms


def test_loop_pending_counts_wake_the_task() -> None:
    *_, settlement = Script(flush_s=0.5).loop.on_frame(b"")
    assert isinstance(settlement, Settlement)
    assert settlement.wake_at_ms == 1501


def test_loop_foreign_key_is_drained() -> None:
    script = Script(*[ANSWER] * 5)
    assert list(script.loop.on_timer(FOREIGN, 1)) == [ANSWER] * 5
    assert script.made == 1
    list(script.loop.on_frame(b""))
    assert script.made == 2


def test_loop_end_of_input_runs_everything_and_rests() -> None:
    script = Script(*[ANSWER] * 5)
    assert list(script.loop.on_end(KEY)) == [ANSWER] * 5
    assert script.log == ["rest"]


@pytest.mark.parametrize("outputs", [[Shard(b"")], [Offload(b"")]])
def test_loop_is_idle_while_the_exchange_blocks(outputs: list[Any]) -> None:
    script = Script(outputs)
    for action in script.loop.on_frame(b""):
        if action == outputs:
            script.log.append("blocked")
            script.now_ms += 100
    assert script.log == ["batch", "idle", "blocked", "busy", "rest"]
    assert script.waits == ([100.0] if isinstance(outputs[0], Offload) else [])


def test_loop_split_request_is_emitted_while_idle() -> None:
    script = Script()
    script.leaves_at_once = [Shard(b"")]
    for action in script.loop.on_frame(b""):
        if not isinstance(action, Settlement):
            script.log.append("blocked")
    assert script.log[:3] == ["idle", "blocked", "busy"]
