"""The scheduler of a task, on a scripted pipeline and clock."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.outputs import Answer, Offload, Shard
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.batch_queue import QueueChanges
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import LATE_MS, Settlement, TaskLoop
from anabranch.operators.runtime.task_lock import TaskLock
from anabranch.schemas.frames import write_waiting
from anabranch.schemas.model import Batching
from anabranch.schemas.records import Source
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request, session_of

KEY, FOREIGN = 7, 8
ANSWER = [Answer(b"", b"")]


class Script:
    """A pipeline, a queue, a balancer, a lock and a clock: every batch takes 4 ms."""

    def __init__(
        self, *batches: list[Any], slice_ms: float = 10.0, flush_s: float = 0.0, late_ms: float = LATE_MS
    ) -> None:
        self.batches = list(batches)
        self.now_ms = 1000.5
        self.leaves_at_once: list[Any] = []
        self.comes_back: list[Any] = []
        self.is_full = self.is_cheap = self.is_blocked = self.lets_pass = False
        self.backlog_ms = 0.0
        self.log: list[str] = []
        self.waits: list[float] = []
        self.blocked: list[float] = []
        self.made = 0
        itself: Any = self
        policy = SchedulingPolicy(work_slice_ms=slice_ms)
        self.loop = TaskLoop(
            KEY, itself, list, self, lambda: flush_s, lambda: self.now_ms, policy, itself, itself, late_ms
        )

    @property
    def steps(self) -> list[str]:
        """The log without looks for tickets."""
        return [each for each in self.log if each != "collect"]

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
        if self.lets_pass:
            self.is_blocked = self.is_full = self.lets_pass = False
            return [Shard(b"")]
        if not self.batches:
            return None
        self.now_ms += 4
        return self.batches.pop(0)

    def await_slow(self, queue: Any) -> bool:
        return False

    def settle(self) -> QueueChanges:
        return QueueChanges([], [])

    def next_deadline(self) -> float | None:
        return 0.0 if self.batches else None

    @property
    def awaits_readers(self) -> bool:
        return self.is_blocked

    def let_pass(self) -> None:
        self.lets_pass = True

    def collect(self) -> bool:
        self.log.append("collect")
        return False

    def wait(self, timeout_ms: float) -> bool:
        """Readers make room after each third wait; after ten, none is expected."""
        self.log.append("wait")
        assert self.log.count("wait") < 100, "it waits for ever"
        self.now_ms += timeout_ms
        if self.comes_back and self.log.count("wait") % 3 == 0:
            self.batches.append(self.comes_back.pop())
        return self.log.count("wait") < 10

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        self.waits.append(waited_ms)

    def note_blocked(self, waited_ms: float) -> None:
        self.blocked.append(waited_ms)

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


def test_loop_late_timer_does_not_keep_little_work_waiting() -> None:
    script = Script(*[ANSWER] * 9)
    list(script.loop.on_frame(b""))
    script.now_ms = 1018.0
    assert list(script.loop.on_frame(b"")) == [], "it is 10 ms late"
    script.now_ms, script.backlog_ms = 1018.5, 10.5
    assert list(script.loop.on_frame(b"")) == [], "requests of much work wait for urgent ones"
    script.backlog_ms = 10.0
    assert list(script.loop.on_frame(b"")) == [ANSWER] * 2
    assert list(script.loop.on_timer(KEY, 1008))[:1] == [ANSWER], "the timer still counts"


def test_loop_of_a_bundle_never_waits_for_a_timer() -> None:
    script = Script(*[ANSWER] * 9, late_ms=-1.0)
    list(script.loop.on_frame(b""))
    script.backlog_ms = 10.5
    assert list(script.loop.on_frame(b"")) == [], "requests of much work wait for urgent ones"
    script.backlog_ms = 10.0
    assert list(script.loop.on_frame(b""))[:2] == [ANSWER] * 2


def test_loop_of_a_bundle_drains_a_backlog_of_cheap_work() -> None:
    """Otherwise every later request goes through state, which takes the time in which the backlog could be run."""
    script = Script(*[ANSWER] * 9, late_ms=-1.0)
    list(script.loop.on_frame(b""))
    script.backlog_ms, script.is_cheap = 500.0, True
    assert list(script.loop.on_frame(b""))[:2] == [ANSWER] * 2


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


def test_loop_foreign_key_is_drained_in_slices() -> None:
    script = Script(*[ANSWER] * 5)
    assert list(script.loop.on_timer(FOREIGN, 1)) == [Settlement([], [], 1000)], "it restores first"
    assert list(script.loop.on_timer(FOREIGN, 2)) == [], "a timer from before the rescale"
    script.is_full = True
    assert list(script.loop.on_timer(FOREIGN, 1000)) == [ANSWER, ANSWER, Settlement([], [], 1008)]
    assert script.steps == ["batch", "batch"]
    assert list(script.loop.on_timer(FOREIGN, 1008)) == [ANSWER, ANSWER, Settlement([], [], 1016)]
    assert list(script.loop.on_timer(FOREIGN, 1016)) == [ANSWER]
    assert script.steps[-1] == "rest"
    assert script.made == 1
    list(script.loop.on_frame(b""))
    assert script.made == 2


def test_loop_foreign_key_keeps_a_busy_task_busy() -> None:
    script = Script(*[ANSWER] * 9)
    list(script.loop.on_frame(b""))
    list(script.loop.on_timer(FOREIGN, 1))
    list(script.loop.on_timer(FOREIGN, 1008))
    assert "rest" not in script.log


def test_loop_end_of_input_continues_a_foreign_queue() -> None:
    script = Script(*[ANSWER] * 5)
    list(script.loop.on_timer(FOREIGN, 1))
    list(script.loop.on_timer(FOREIGN, 1000))
    assert list(script.loop.on_end(FOREIGN)) == [ANSWER] * 3
    assert script.made == 1, "requests that ran are not restored"


def test_loop_foreign_queue_shrinks_call_by_call() -> None:
    served, batch_ms, slice_ms, now = catalog(Batching(max_rows=1)), 5.0, 10.0, [NOW_MS]
    writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: now[0])
    policy = SchedulingPolicy(work_slice_ms=slice_ms, max_waiting_bytes=1000)

    class Slow:
        def run(self, outputs: Any, inputs: Any) -> Any:
            now[0] += batch_ms
            return session_of(served.find("pairs", "")).run(outputs, inputs)

    state = {
        number: write_waiting(request("pairs", [1.0, 2.0], request_id=f"{number}"), Source(0, number, int(NOW_MS)))
        for number in range(300)
    }
    pipeline = RequestPipeline(
        Admission(served, MAX_MESSAGE_BYTES, 5, writer.defects),
        Router(served, lambda _: BatchCostModel()),
        InferenceTask(served, lambda _: Slow(), writer, task=0),
        writer,
        policy,
    )
    loop = TaskLoop(KEY, pipeline, state.items, TaskLock(), lambda: 0.0, lambda: now[0], policy)
    at_ms, answered, sizes = 0, [], []
    while state:
        began_ms, wake_at_ms = now[0], None
        for action in loop.on_timer(FOREIGN, at_ms):
            if isinstance(action, Settlement):
                for number in action.departed:
                    del state[number]
                wake_at_ms = action.wake_at_ms
            else:
                answered += [output.key for output in action if isinstance(output, Answer)]
        assert now[0] - began_ms <= slice_ms + batch_ms
        sizes.append(len(state))
        if wake_at_ms is not None:
            at_ms = wake_at_ms
    assert sorted(answered) == sorted(f"{number}".encode() for number in range(300))
    assert len(sizes) >= 150
    assert all(after < before for before, after in pairwise(sizes))
    assert list(loop.on_timer(FOREIGN, at_ms)) == []


def test_loop_end_of_input_runs_everything_and_rests() -> None:
    script = Script(*[ANSWER] * 5)
    assert list(script.loop.on_end(KEY)) == [ANSWER] * 5
    assert script.steps == ["rest"]


@pytest.mark.parametrize("outputs", [[Shard(b"")], [Offload(b"")]])
def test_loop_is_idle_while_the_exchange_blocks(outputs: list[Any]) -> None:
    script = Script(outputs)
    for action in script.loop.on_frame(b""):
        if action == outputs:
            script.log.append("blocked")
            script.now_ms += 100
    assert script.steps == ["batch", "idle", "blocked", "busy", "rest"]
    assert script.waits == ([100.0] if isinstance(outputs[0], Offload) else [])


def test_loop_split_request_is_emitted_while_idle() -> None:
    script = Script()
    script.leaves_at_once = [Shard(b"")]
    for action in script.loop.on_frame(b""):
        if not isinstance(action, Settlement):
            script.log.append("blocked")
    assert script.steps[:3] == ["idle", "blocked", "busy"]


def test_loop_blocked_task_looks_for_tickets_and_reads_on() -> None:
    script = Script()
    script.is_blocked = True
    list(script.loop.on_frame(b""))
    assert script.log == ["collect", "batch", "rest"]


def test_loop_full_task_goes_on_when_readers_have_room() -> None:
    script = Script()
    script.is_blocked = script.is_full = True
    script.comes_back = [ANSWER, ANSWER]
    actions = script.loop.on_frame(b"")
    assert [next(actions), next(actions)] == [ANSWER, ANSWER]
    assert script.steps.count("wait") == 6
    assert script.steps[:4] == ["batch", "idle", "wait", "busy"]


def test_loop_full_task_without_tickets_lets_records_pass() -> None:
    script = Script()
    script.is_blocked = script.is_full = True
    *outputs, _ = script.loop.on_frame(b"")
    assert outputs == [[Shard(b"")]]
    assert script.steps.count("wait") == 10
