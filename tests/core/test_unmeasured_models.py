"""Models without measurements in an overloaded task, with simulated time: costs are learned from their runs.

whole   no batch axis: a request is a run          cut    three stages, the first of which makes its senders wait
long    rows of any length, padded                 mean   an ensemble of a measured model and of two without
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.outputs import Answer, Offload, Shard, Unit
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.batch_queue import BatchQueue
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import Settlement, TaskLoop
from anabranch.schemas.frames import write_requests, write_waiting
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.model import Batching, ModelSpec
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, PADDING, catalog, request, session_of
from tests.planted import mutated

KEY, LIMIT_MS = 7, 1000.0
MEAN_ELEMENTS = 380 / 6
SERVED = catalog(Batching(shard_rows=32, max_rows=4), ensembles=True)
#: With little padding, predictions are near the truth.
SERVED.models["long"]["1"] = replace(SERVED.find("long", "1"), padding=replace(PADDING, max_waste=0.1))
REFUSES = SchedulingPolicy(overload="refuse", max_backlog_ms=LIMIT_MS)


class OverloadedTask:
    """A task and its clock.

    Args:
        element_ms: Time of an element of a run, after `call_ms`.
        state: What an earlier task left.
    """

    def __init__(
        self,
        policy: SchedulingPolicy = REFUSES,
        *,
        call_ms: float = 26.0,
        element_ms: float = 0.0,
        tasks: int = 1,
        state: dict[int, bytes] | None = None,
    ) -> None:
        self.now_ms = NOW_MS
        self.call_ms, self.element_ms, self.blocks_ms = call_ms, element_ms, 0.0
        self.state = state if state is not None else {}
        self.wakes: set[int] = set()
        self.came: dict[str, float] = {}
        self.served: dict[str, float] = {}
        self.codes: dict[str, str] = {}
        self.sent: list[Any] = []
        self._offset = 0
        self.costs = {name: BatchCostModel() for name in SERVED.models}
        self.costs["rows"] = BatchCostModel([Measurement(1, 10.0)])
        writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: self.now_ms)
        pipeline = RequestPipeline(
            Admission(SERVED, MAX_MESSAGE_BYTES, 5, writer.defects),
            Router(SERVED, lambda model: self.costs[model.name]),
            InferenceTask(SERVED, lambda model: _Session(self, model), writer, task=0),
            writer,
            policy,
        )
        balancers = LaneBalancers(policy, tasks) if tasks > 1 else None
        self.loop = TaskLoop(KEY, pipeline, self.state.items, self, lambda: 0.0, lambda: self.now_ms, policy, balancers)

    @contextmanager
    def own_batch(self) -> Iterator[None]:
        yield

    def idle(self) -> AbstractContextManager[None]:
        return self.own_batch()

    def rest(self) -> None:
        """No offloaded batches come."""

    def takes(self, model: ModelSpec, rows: int, elements: int) -> None:
        run_ms = self.call_ms + self.element_ms * elements
        self.now_ms += run_ms
        self.costs[model.name].observe(rows, run_ms, elements // rows)

    def read(self, model: str, *values: list[float], **parameters: int) -> None:
        """Read a frame of one request for each list."""
        frame = []
        for each in values:
            name = f"{self._offset}"
            source = Source(0, self._offset, int(self.now_ms))
            frame.append((message(model, each, name, parameters), source))
            self.came[name] = self.now_ms
            self._offset += 1
        self._carry_out(self.loop.on_frame(write_requests(frame)))

    def fire(self, until_ms: float) -> None:
        """Fire the timers up to a time."""
        while self.wakes and (at_ms := min(self.wakes)) <= until_ms:
            self.wakes.remove(at_ms)
            self.now_ms = max(self.now_ms, at_ms)
            self._carry_out(self.loop.on_timer(KEY, at_ms))
        self.now_ms = max(self.now_ms, until_ms)

    def _carry_out(self, actions: Iterator[Any]) -> None:
        for action in actions:
            if isinstance(action, Settlement):
                for number in action.departed:
                    del self.state[number]
                self.state.update(action.arrived)
                if action.wake_at_ms is not None:
                    self.wakes.add(action.wake_at_ms)
                continue
            for output in action:
                if isinstance(output, Answer):
                    name, response = output.key.decode(), codec.decode_response(output.value)
                    assert name not in self.served
                    assert name not in self.codes
                    code = getattr(response, "code", "")
                    if code:
                        self.codes[name] = code
                    else:
                        self.served[name] = self.now_ms
                elif isinstance(output, Offload | Shard | Unit):
                    self.sent.append(output)
                    self.now_ms += self.blocks_ms

    @property
    def queue(self) -> BatchQueue:
        assert self.loop._own is not None
        return self.loop._own

    def longest_ms(self) -> float:
        return max(at_ms - self.came[name] for name, at_ms in self.served.items())


def message(model: str, values: list[float], name: str, parameters: Mapping[str, int]) -> bytes:
    if model != "long":
        return request(model, values, request_id=name, parameters=parameters)
    row = Tensor.from_array("x", np.array([values], np.float32))
    return codec.encode_request(InferRequest(model, (row,), name, parameters=parameters))


class _Session:
    def __init__(self, task: OverloadedTask, model: ModelSpec) -> None:
        self._task, self._model = task, model

    def run(self, outputs: Any, inputs: Any) -> Any:
        arrays = list(inputs.values())
        rows = arrays[0].shape[0] if self._model.batchable else 1
        self._task.takes(self._model, rows, sum(array.size for array in arrays))
        return session_of(self._model).run(outputs, inputs)


def text(random: Random) -> list[float]:
    """Values of a random length, the mean of which is `MEAN_ELEMENTS`."""
    return [1.0] * random.choice((4, 8, 16, 32, 64, 256))


def serve(task: OverloadedTask, model: str, rate: float, count: int) -> None:
    """Serve requests at a rate per ms; a frame holds all that came while the task was busy."""
    random = Random(2)
    came_ms = [NOW_MS]
    while len(came_ms) < count:
        came_ms.append(came_ms[-1] + random.expovariate(rate))
    while came_ms:
        task.fire(came_ms[0])
        ready = [at_ms for at_ms in came_ms if at_ms <= task.now_ms]
        del came_ms[: len(ready)]
        task.read(model, *[text(random) for _ in ready])
    task.fire(task.now_ms + 60_000)


# ---- refusal ------------------------------------------------------------------------------------------------------


def test_unmeasured_whole_model_in_a_burst_refuses() -> None:
    task = OverloadedTask()
    # Nothing is known of the model when they arrive.
    task.read("whole", *[[1.0, 2.0]] * 400)
    task.fire(NOW_MS + 60_000)
    assert set(task.codes.values()) == {"overloaded"}
    assert 0.9 * LIMIT_MS <= task.longest_ms() <= LIMIT_MS + 4 * 26
    assert len(task.served) + len(task.codes) == 400


def test_unmeasured_model_over_the_limit_alone_is_served() -> None:
    task = OverloadedTask(call_ms=3 * LIMIT_MS)
    for _ in range(5):
        task.read("whole", [1.0, 2.0])
    assert (len(task.served), task.codes) == (5, {})
    task.read("whole", *[[1.0, 2.0]] * 5)
    assert (len(task.served), set(task.codes.values())) == (6, {"overloaded"})


def test_unmeasured_open_axis_in_a_burst_refuses() -> None:
    task, random = OverloadedTask(call_ms=2.0, element_ms=0.2), Random(1)
    task.read("long", *[text(random) for _ in range(400)])
    task.fire(NOW_MS + 60_000)
    assert set(task.codes.values()) == {"overloaded"}
    assert 0.5 * LIMIT_MS <= task.longest_ms() <= 1.3 * LIMIT_MS


@pytest.mark.parametrize(("model", "call_ms", "element_ms"), [("whole", 2.0, 0.2), ("long", 2.0, 0.2)])
def test_unmeasured_model_at_twice_its_rate_refuses(model: str, call_ms: float, element_ms: float) -> None:
    task = OverloadedTask(call_ms=call_ms, element_ms=element_ms)
    serve(task, model, 2 / (call_ms + element_ms * MEAN_ELEMENTS), 1000)
    assert 0.2 <= len(task.codes) / 1000 <= 0.5
    assert 0.9 * LIMIT_MS <= task.longest_ms() <= 1.15 * LIMIT_MS


@pytest.mark.parametrize("model", ["whole", "long"])
def test_unmeasured_model_below_its_rate_refuses_nothing(model: str) -> None:
    task = OverloadedTask(call_ms=2.0, element_ms=0.2)
    serve(task, model, 0.5 / (2.0 + 0.2 * MEAN_ELEMENTS), 1000)
    assert (len(task.served), task.codes) == (1000, {})


def test_unmeasured_model_that_slows_down_refuses() -> None:
    task = OverloadedTask(call_ms=2.0)
    task.read("whole", *[[1.0, 2.0]] * 450)
    task.fire(NOW_MS + 50)
    assert task.codes == {}
    task.call_ms = 26.0
    task.fire(NOW_MS + 60_000)
    assert set(task.codes.values()) == {"overloaded"}
    assert task.longest_ms() <= LIMIT_MS + 20 * 26


def test_unmeasured_model_restored_refuses_the_excess() -> None:
    held = {
        number: write_waiting(request("whole", [1.0, 2.0], request_id=f"{number}"), Source(0, number, int(NOW_MS)))
        for number in range(400)
    }
    task = OverloadedTask(state=held)
    task.came = {f"{number}": NOW_MS for number in range(400)}
    task.wakes.add(1)
    task.fire(NOW_MS + 60_000)
    assert set(task.codes.values()) == {"overloaded"}
    assert task.longest_ms() <= LIMIT_MS + 4 * 26
    assert task.state == {}


def test_unmeasured_stages_that_block_refuse() -> None:
    task = OverloadedTask()
    task.blocks_ms = 40.0
    # Batches of four rows leave every 40 ms.
    task.read("cut", *[[1.0]] * 400)
    task.fire(NOW_MS + 60_000)
    assert set(task.codes.values()) == {"overloaded"}
    assert 0.5 * LIMIT_MS / 40 <= len(task.sent) <= 1.3 * LIMIT_MS / 40


def test_unmeasured_stages_that_take_all_refuse_nothing() -> None:
    task = OverloadedTask()
    task.read("cut", *[[1.0]] * 400)
    task.fire(NOW_MS + 60_000)
    assert (len(task.sent), task.codes) == (100, {})


def test_unmeasured_members_count_in_an_ensemble() -> None:
    task = OverloadedTask()
    for name in ("less", "more"):
        for _ in range(3):
            task.costs[name].observe(1, 20.0, 2)
    task.read("mean", *[[1.0]] * 100)
    # Of 10, 20 and 20 ms for each of three members.
    assert len(task.codes) == pytest.approx(100 - LIMIT_MS / 50, abs=2)


# ---- balance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "element_ms"), [("whole", 0.0), ("long", 0.0), ("long", 0.2)])
def test_unmeasured_model_that_is_late_is_balanced(model: str, element_ms: float) -> None:
    task, random = OverloadedTask(SchedulingPolicy(), element_ms=element_ms, tasks=4), Random(4)
    task.read(model, *[text(random) for _ in range(400)])
    task.fire(NOW_MS + 60_000)
    assert len(task.sent) >= 20
    assert all(isinstance(each, Offload) for each in task.sent)


# ---- deadlines ----------------------------------------------------------------------------------------------------


def test_unmeasured_model_answers_hopeless_deadlines_at_once() -> None:
    task = OverloadedTask()
    for _ in range(20):
        task.read("whole", [1.0, 2.0])
    began_ms = task.now_ms
    task.read("whole", [1.0, 2.0], timeout=20_000)
    assert list(task.codes.values()) == ["deadline_exceeded"]
    assert task.now_ms == began_ms


# ---- planted defects ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "defect"),
    [
        (
            test_unmeasured_whole_model_in_a_burst_refuses,
            mutated(BatchQueue, "follow_costs", "return self._follow_all()", "return False"),
        ),
        (
            test_unmeasured_model_restored_refuses_the_excess,
            mutated(RequestPipeline, "run_next", "queue.follow_costs()", "False"),
        ),
        (
            test_unmeasured_model_that_slows_down_refuses,
            mutated(BatchQueue, "_follow_all", "group.revision != group.costs.revision", "not group.work_ms"),
        ),
        (
            test_unmeasured_open_axis_in_a_burst_refuses,
            mutated(BatchCostModel, "price", "learned.price(max_rows, row_elements)", "(0.0, 0.0)"),
        ),
        (
            lambda: test_unmeasured_model_at_twice_its_rate_refuses("whole", 2.0, 0.2),
            mutated(BatchCostModel, "observe", "learned.observe(rows, row_elements, run_ms)", "0.0"),
        ),
        (
            test_unmeasured_model_over_the_limit_alone_is_served,
            mutated(BatchQueue, "_shed_above", "for group in groups]) - 1", "for group in groups])"),
        ),
        (
            test_unmeasured_stages_that_block_refuse,
            mutated(TaskLoop, "_emit", "if queue is not None", "if False"),
        ),
        (
            test_unmeasured_members_count_in_an_ensemble,
            mutated(Router, "_cost_model_of", "EnsembleCosts([self._cost_model_of", "BatchCostModel() or ([self._cost"),
        ),
        (
            lambda: test_unmeasured_model_that_is_late_is_balanced("whole", 0.0),
            mutated(BatchCostModel, "observe", "learned.observe(rows, row_elements, run_ms)", "0.0"),
        ),
        (
            test_unmeasured_model_answers_hopeless_deadlines_at_once,
            mutated(BatchQueue, "add", "group.at_least_ms(run_rows)", "0"),
        ),
    ],
)
def test_unmeasured_planted_defect_is_caught(check: Callable[[], None], defect: AbstractContextManager[Any]) -> None:
    with defect, pytest.raises(AssertionError):
        check()
