"""A slow model and a quick one in one task, with simulated time.

Requests of the slow model come at twice the rate at which one can run; the quick one uses a tenth of the task.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any

import numpy as np
import pytest

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask, RanApart
from anabranch.operators.core.outputs import Answer, Offload
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.batch_queue import BatchQueue, Handling
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers, LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import Settlement, TaskLoop
from anabranch.schemas.frames import write_requests
from anabranch.schemas.model import Batching, ModelSpec
from anabranch.schemas.records import NO_DEADLINE_MS, Source
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request, session_of
from tests.planted import mutated

KEY = 7
SLOW_MS, QUICK_MS = 2000.0, 1.0
SERVED = catalog(Batching(max_rows=2))


class SimulatedTask:
    """A task and its clock; `pairs` is slow, `whole` is quick.

    Args:
        state: What an earlier task left.
        has_lane: False to run slow batches in the task's thread.
    """

    def __init__(
        self, state: dict[int, bytes] | None = None, *, has_lane: bool = True, measured: bool = True, tasks: int = 1
    ) -> None:
        self.now_ms = NOW_MS
        self.state = state if state is not None else {}
        self.wakes: set[int] = set()
        self.answered: dict[str, float] = {}
        self.offloaded: list[tuple[float, bytes]] = []
        self.blocked_ms = 0.0
        self.runs = 0
        self._ends_at_ms: float | None = None
        self._ran: RanApart | None = None
        self._apart = False
        self._offset = 0
        self.costs = {
            name: BatchCostModel([Measurement(1, run_ms), Measurement(2, run_ms)] if measured else ())
            for name, run_ms in (("pairs", SLOW_MS), ("whole", QUICK_MS))
        }
        policy = SchedulingPolicy()
        writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: self.now_ms)
        pipeline = RequestPipeline(
            Admission(SERVED, MAX_MESSAGE_BYTES, 5, writer.defects),
            Router(SERVED, lambda model: self.costs[model.name]),
            InferenceTask(SERVED, lambda model: _Session(self, model), writer, task=0),
            writer,
            policy,
            self if has_lane else None,
        )
        balancers = LaneBalancers(policy, tasks) if tasks > 1 else None
        self.loop = TaskLoop(KEY, pipeline, self.state.items, self, lambda: 0.0, lambda: self.now_ms, policy, balancers)

    # ---- the lane

    @property
    def has_room(self) -> bool:
        return self._ran is None

    def start(self, run: Callable[[], RanApart]) -> None:
        self._apart = True
        self._ran, self._ends_at_ms = run(), self.now_ms + SLOW_MS
        self._apart = False

    def take(self) -> RanApart | None:
        if self._ends_at_ms is None or self.now_ms < self._ends_at_ms:
            return None
        ran, self._ran, self._ends_at_ms = self._ran, None, None
        return ran

    def wait(self, timeout_ms: float) -> None:
        self.now_ms += timeout_ms

    def takes(self, model: ModelSpec) -> None:
        """Notes a run, which takes the task's time unless it is beside the task."""
        run_ms = SLOW_MS if model.name == "pairs" else QUICK_MS
        self.costs[model.name].observe(1, run_ms)
        self.runs += model.name == "pairs"
        self.now_ms += 0.0 if self._apart else run_ms

    # ---- the lock

    @contextmanager
    def own_batch(self) -> Iterator[None]:
        yield

    def idle(self) -> AbstractContextManager[None]:
        return self.own_batch()

    def rest(self) -> None:
        """No offloaded batches come."""

    # ---- the operator

    def read(self, model: str, *names: str, priority: int = 5, timeout_ms: int = 0) -> None:
        parameters: dict[str, Any] = {"priority": priority} | ({"timeout": timeout_ms * 1000} if timeout_ms else {})
        frame = []
        for name in names:
            source = Source(0, self._offset, int(self.now_ms))
            frame.append((request(model, [1.0, 2.0], request_id=name, parameters=parameters), source))
            self._offset += 1
        self.carry_out(self.loop.on_frame(write_requests(frame)))

    def fire(self, until_ms: float) -> None:
        """Fires the timers up to a time."""
        while self.wakes and (at_ms := min(self.wakes)) <= until_ms:
            self.wakes.remove(at_ms)
            self.now_ms = max(self.now_ms, at_ms)
            self.carry_out(self.loop.on_timer(KEY, at_ms))
        self.now_ms = max(self.now_ms, until_ms)

    def carry_out(self, actions: Iterator[Any]) -> None:
        began_ms = self.now_ms
        for action in actions:
            if isinstance(action, Settlement):
                for number in action.departed:
                    del self.state[number]
                self.state.update(action.arrived)
                if action.wake_at_ms is not None:
                    self.wakes.add(action.wake_at_ms)
                continue
            for output in action:
                if isinstance(output, Offload):
                    self.offloaded.append((self.now_ms, output.value))
                    continue
                assert isinstance(output, Answer)
                assert output.key.decode() not in self.answered
                self.answered[output.key.decode()] = self.now_ms
        self.blocked_ms = max(self.blocked_ms, self.now_ms - began_ms)


class _Session:
    def __init__(self, task: SimulatedTask, model: ModelSpec) -> None:
        self._task, self._model = task, model

    def run(self, outputs: Any, inputs: Any) -> Any:
        self._task.takes(self._model)
        return session_of(self._model).run(outputs, inputs)


def quick_p99_ms(task: SimulatedTask, seconds: int = 30) -> float:
    """Serves both models for a while; returns the 99th percentile of the quick one's latencies."""
    random, came = Random(1), dict[str, float]()
    quick_ms = slow_ms = task.now_ms
    end_ms = task.now_ms + 1000 * seconds
    while min(quick_ms, slow_ms) < end_ms:
        at_ms = min(quick_ms, slow_ms)
        task.fire(at_ms)
        name = f"{at_ms}"
        if at_ms == slow_ms:
            task.read("pairs", f"slow {name}")
            slow_ms += random.expovariate(2 / SLOW_MS)
        else:
            came[name] = at_ms
            task.read("whole", name, priority=1)
            quick_ms += random.expovariate(0.1 / QUICK_MS)
    task.fire(end_ms + 10 * SLOW_MS)
    return float(np.percentile([task.answered[name] - at_ms for name, at_ms in came.items()], 99))


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_slow_model_beside_a_quick_one_keeps_its_p99(tasks: int) -> None:
    task = SimulatedTask(tasks=tasks)
    assert quick_p99_ms(task) <= 100.0
    slow = [at_ms for name, at_ms in task.answered.items() if name.startswith("slow")]
    # The slow model loses at most a fiftieth of its time.
    assert sum(at_ms <= NOW_MS + 30_000 for at_ms in slow) >= 0.98 * 30_000 / SLOW_MS - 1
    assert task.blocked_ms <= 50.0


@pytest.mark.slow
def test_slow_model_without_measurements_is_learned() -> None:
    task = SimulatedTask(measured=False)
    # Only its first batch runs in the task's thread.
    task.read("pairs", "first")
    assert quick_p99_ms(task) <= 100.0


def test_slow_model_in_the_thread_holds_up_the_quick_one() -> None:
    assert quick_p99_ms(SimulatedTask(has_lane=False), 20) > SLOW_MS / 2


def test_slow_batches_alone_follow_each_other() -> None:
    task = SimulatedTask()
    task.costs["pairs"].observe(1, 0.8 * SLOW_MS)
    task.read("pairs", *[f"{n}" for n in range(10)])
    task.fire(NOW_MS + 20 * SLOW_MS)
    assert len(task.answered) == 10
    assert max(task.answered.values()) - NOW_MS <= 10 * 1.02 * SLOW_MS
    assert len(task.state) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "defect"),
    [
        (test_slow_model_beside_a_quick_one_keeps_its_p99, mutated(BatchQueue, "take", "group.may_be_slow", "False")),
        (test_slow_batches_alone_follow_each_other, mutated(BatchQueue, "_looks_again_at_ms", "_SLOW_LOOK_SHARE", "4")),
        (test_slow_batches_alone_follow_each_other, mutated(BatchQueue, "take", "now_ms + group", "9e9 + group")),
    ],
)
def test_slow_batches_planted_defect_is_caught(check: Any, defect: AbstractContextManager[Any]) -> None:
    with defect, pytest.raises(AssertionError):
        check(*[1] * check.__code__.co_argcount)


def queue_with_texts(rows: int) -> BatchQueue:
    """A slow page is under way beside the task; texts wait, of which three take half of the limit."""
    costs = {
        b"page": BatchCostModel([Measurement(1, SLOW_MS)]),
        b"texts": BatchCostModel([Measurement(1, 15.0), Measurement(32, 170.0)]),
    }
    for each in costs.values():
        each.observe(1, each.predict_ms(1))
    lane = SimulatedTask()
    queue = BatchQueue(lambda name: Handling(Batching(max_rows=32), costs[name]), SchedulingPolicy(), lane)
    add(queue, b"page", 1)
    assert queue.take(NOW_MS).is_slow
    add(queue, b"texts", rows)
    return queue


def add(queue: BatchQueue, name: bytes, count: int) -> None:
    for number in range(count):
        queue.add(Request(name, 10, 1, 5, NO_DEADLINE_MS, -1, id=f"{number}"), NOW_MS)


def test_batches_beside_a_slow_one_are_small() -> None:
    queue = queue_with_texts(20)
    taken = [queue.take(NOW_MS) for _ in range(5)]
    # The last eight are not slow together.
    assert [len(each.batch) for each in taken] == [3, 3, 3, 3, 8]
    assert not any(each.is_slow for each in taken)


def test_batches_without_a_slow_one_are_full() -> None:
    queue = queue_with_texts(20)
    queue.end_slow()
    departure = queue.take(NOW_MS)
    assert (len(departure.batch), departure.is_slow) == (20, True)


def test_batches_of_the_slow_model_wait_for_it() -> None:
    queue = queue_with_texts(20)
    queue.end_slow()
    queue.take(NOW_MS)
    add(queue, b"texts", 20)
    assert queue.take(NOW_MS).batch == []
    add(queue, b"page", 1)
    assert queue.take(NOW_MS).batch == []


@pytest.mark.parametrize(
    ("check", "defect"),
    [
        (test_batches_beside_a_slow_one_are_small, mutated(BatchQueue, "take", "group.quick_rows()", "0")),
        (test_batches_beside_a_slow_one_are_small, mutated(BatchQueue, "_has_room", "> 0", "> 99")),
        (test_batches_of_the_slow_model_wait_for_it, mutated(BatchQueue, "_has_room", "is not", "is")),
    ],
)
def test_small_batches_planted_defect_is_caught(check: Callable[[], None], defect: AbstractContextManager[Any]) -> None:
    with defect, pytest.raises(AssertionError):
        check()


def test_slow_batch_under_way_needs_no_wait_at_a_checkpoint() -> None:
    task = SimulatedTask()
    task.read("pairs", "slow")
    # The call has ended, so that a barrier passes; state holds the request.
    assert task.now_ms == NOW_MS
    assert (task.runs, len(task.state), task.answered) == (1, 1, {})
    checkpoint = dict(task.state)
    task.fire(NOW_MS + 1.1 * SLOW_MS)
    assert (list(task.answered), task.state) == (["slow"], {})
    restored = SimulatedTask(checkpoint)
    restored.wakes.add(1)
    restored.fire(NOW_MS + 2 * SLOW_MS)
    assert (list(restored.answered), restored.state) == (["slow"], {})


def test_slow_batch_under_way_at_the_end_is_awaited() -> None:
    task = SimulatedTask()
    task.read("pairs", "a")
    task.read("whole", "b")
    task.carry_out(task.loop.on_end(KEY))
    assert sorted(task.answered) == ["a", "b"]
    assert (task.state, task.runs) == ({}, 1)


def test_slow_batches_queued_at_the_end_are_run() -> None:
    task = SimulatedTask()
    task.read("pairs", "a", "b", "c")
    task.carry_out(task.loop.on_end(KEY))
    assert sorted(task.answered) == ["a", "b", "c"]
    assert (task.state, task.runs) == ({}, 3)


def test_slow_batch_under_way_outlives_its_deadline() -> None:
    task = SimulatedTask()
    task.read("pairs", "slow", timeout_ms=1000)
    task.fire(NOW_MS + 2 * SLOW_MS)
    assert list(task.answered) == ["slow"]


def test_slow_batches_of_a_full_task_are_awaited() -> None:
    task = SimulatedTask()
    task.read("pairs", "a", "b")
    queue = task.loop._own
    assert queue is not None
    queue._policy = SchedulingPolicy(max_waiting_bytes=queue.size_bytes - 1)
    task.read("whole", "c")
    # Only the end of `a` makes room.
    assert sorted(task.answered) == ["a", "c"]
    assert not queue.is_full


def test_slow_batches_leave_for_other_tasks_at_their_rate() -> None:
    task = SimulatedTask(tasks=2)
    task.read("pairs", *[f"{n}" for n in range(20)])
    for n in range(100):
        task.fire(NOW_MS + n * SLOW_MS / 20)
        task.read("whole", f"q{n}", priority=1)
    # In five runs of 2 s, one batch leaves for each that runs here, and none of the quick model.
    assert 4 <= len(task.offloaded) <= 6
    assert all(b"pairs" in value for _, value in task.offloaded)


@pytest.mark.parametrize(
    "defect",
    [
        mutated(LaneBalancers, "of", "self._slow if is_slow else self._quick", "self._quick"),
        mutated(LoadBalancer, "__init__", "(tasks - 1) * most_per_task", "8.0"),
    ],
)
def test_slow_batches_planted_flood_is_caught(defect: AbstractContextManager[Any]) -> None:
    with defect, pytest.raises(AssertionError):
        test_slow_batches_leave_for_other_tasks_at_their_rate()
