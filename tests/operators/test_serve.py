"""The serve operator carries out what the task loop decides, in state and timers, and waits as its mode needs."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
from pyflink.common import Row
from pyflink.datastream import TimeDomain

from anabranch.operators import serve
from anabranch.operators.backends.fake import FakeBackend
from anabranch.operators.core.outputs import DeadLetterRecord
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.task_loop import Action, Settlement
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime import operator_runtime
from anabranch.operators.runtime.process_runtime import ProcessRuntime
from anabranch.operators.runtime.side_outputs import LETTERS_TAG, WORK_TAG
from anabranch.operators.serve import ServeFunction
from anabranch.schemas.frames import write_requests
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.model import Batching, Catalog, ModelSpec, TensorSpec
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS


class Script:
    """A task loop that always decides the same."""

    def __init__(self, *actions: Action) -> None:
        self.actions = actions
        self.calls: list[tuple[Any, ...]] = []

    def on_frame(self, frame: Any) -> Iterator[Action]:
        self.calls.append(("frame", bytes(frame)))
        return iter(self.actions)

    def on_timer(self, key: int, at_ms: int) -> Iterator[Action]:
        self.calls.append(("timer", key, at_ms))
        return iter(self.actions)

    def on_end(self, key: int) -> Iterator[Action]:
        self.calls.append(("end", key))
        return iter(self.actions)


def made_operator(*actions: Action) -> Any:
    operator: Any = object.__new__(ServeFunction)
    operator._loop, operator._waiting, operator._runtime = Script(*actions), Mock(), Mock()
    return operator


def test_serve_settlement_reaches_state_and_timers() -> None:
    operator, ctx = made_operator(Settlement([(3, b"c"), (4, b"d")], [1, 2], 70, 60)), Mock()
    assert list(operator.process_element(b"frame", ctx)) == []
    assert operator._loop.calls == [("frame", b"frame")]
    assert operator._waiting.method_calls == [
        ("remove", (1,), {}),
        ("remove", (2,), {}),
        ("put", (3, b"c"), {}),
        ("put", (4, b"d"), {}),
    ]
    timers = ctx.timer_service.return_value.method_calls
    assert timers == [("register_event_time_timer", (60,), {}), ("register_processing_time_timer", (70,), {})]
    operator._runtime.defect_log.report.assert_called_once_with()


def test_serve_settlement_without_timers_registers_none() -> None:
    ctx = Mock()
    assert list(made_operator(Settlement([], [1])).process_element(b"", ctx)) == []
    assert ctx.timer_service.return_value.method_calls == []


def test_serve_outputs_are_emitted_before_the_next_action() -> None:
    taken: list[str] = []

    def actions() -> Iterator[Action]:
        taken.append("first")
        yield [DeadLetterRecord(b"k", b"v")]
        taken.append("second")
        yield Settlement([], [])

    operator = made_operator()
    operator._loop.on_frame = lambda _: actions()
    emitted = operator.process_element(b"", Mock())
    assert next(emitted)[0] == LETTERS_TAG
    assert taken == ["first"]
    assert list(emitted) == []
    assert taken == ["first", "second"]


@pytest.mark.parametrize("key", [7, Row(7), (7,)])
def test_serve_timer_of_each_domain_reaches_the_loop(key: Any) -> None:
    operator = made_operator()
    for domain, call in ((TimeDomain.PROCESSING_TIME, ("timer", 7, 5)), (TimeDomain.EVENT_TIME, ("end", 7))):
        ctx = Mock(**{"get_current_key.return_value": key, "time_domain.return_value": domain})
        assert list(operator.on_timer(5, ctx)) == []
        assert operator._loop.calls[-1] == call


def context_of(*, in_jvm: bool) -> Any:
    """The context of the first of two tasks, in one of the execution modes."""
    if not in_jvm:
        told = {"index_of_this_subtask": 0, "number_of_parallel_subtasks": 2, "attempt_number": 0}
        return Mock(_runtime_context=None, **{f"get_{name}.return_value": value for name, value in told.items()})
    info = Mock(
        **{
            "getIndexOfThisSubtask.return_value": 0,
            "getNumberOfParallelSubtasks.return_value": 2,
            "getAttemptNumber.return_value": 0,
        }
    )
    java = Mock(**{"getTaskInfo.return_value": info})
    java.getMetricGroup().getAllVariables().get.return_value = "execution_0"
    return Mock(_runtime_context=java)


class Task:
    """An opened operator on a clock that only the model moves, by 800 ms each run."""

    def __init__(self, *, in_jvm: bool) -> None:
        self.now_ms = NOW_MS
        self.timers: list[int] = []
        x = (TensorSpec("x", "FP32", (None,)),)
        model = ModelSpec("m", "1", "m", "m", x, x, batching=Batching(max_rows=1, shard_rows=1))
        self._operator = ServeFunction(
            Catalog({"m": {"1": model}}),
            FakeBackend(self._run),
            ResponseWriter("requests", MAX_MESSAGE_BYTES, lambda: self.now_ms),
            MAX_MESSAGE_BYTES,
            SchedulingPolicy(work_slice_ms=1000.0),
            (0, 1, 2, 3),
            TransportOptions(job="job", has_credits=True),
        )
        with patch.object(serve, "now_ms", lambda: self.now_ms):
            self._operator.open(context_of(in_jvm=in_jvm))
        # Models are measured when they are loaded.
        self.now_ms = NOW_MS
        self._operator._waiting.items = dict[int, bytes]().items
        self._ctx = Mock()
        self._ctx.timer_service().register_processing_time_timer = self.timers.append

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.now_ms += 800
        return inputs

    def take(self, *rows: int) -> list[Any]:
        """Takes a frame of requests of some rows."""
        records = []
        for number, count in enumerate(rows):
            tensor = Tensor.from_array("x", np.zeros(count, np.float32))
            value = codec.encode_request(InferRequest("m", (tensor,), f"{number}"))
            records.append((value, Source(0, number, int(self.now_ms))))
        return list(self._operator.process_element(write_requests(records), self._ctx))

    def close(self) -> None:
        self._operator.close()


def check_timer_between_frames(*, in_jvm: bool) -> None:
    """A timer of process mode comes in the next bundle: frames until then do not wait for it."""
    with patch.object(operator_runtime, "PROCESS", ProcessRuntime()):
        task = Task(in_jvm=in_jvm)
        assert len(task.take(1, 1, 1)) == 1, "one batch fills a slice"
        assert task.timers == [NOW_MS + 800]
        assert len(task.take(1)) == (0 if in_jvm else 1)
        task.now_ms += 11
        assert len(task.take(1)) == 1, "a timer that is 11 ms late is not waited for"
        task.close()


def check_look_for_room(*, in_jvm: bool) -> None:
    """Without room at readers, a task looks again after 2 ms, or 10 ms where each look costs a bundle."""
    with patch.object(operator_runtime, "PROCESS", ProcessRuntime()):
        task = Task(in_jvm=in_jvm)
        outputs = task.take(9)
        assert 0 < sum(tag == WORK_TAG for tag, _ in outputs) < 9
        assert task.timers == [NOW_MS + (2 if in_jvm else 10)]
        task.close()


@pytest.mark.parametrize("in_jvm", [True, False])
def test_serve_timer_holds_up_frames_in_thread_mode_only(*, in_jvm: bool) -> None:
    check_timer_between_frames(in_jvm=in_jvm)


@pytest.mark.parametrize("in_jvm", [True, False])
def test_serve_looks_for_room_less_often_in_process_mode(*, in_jvm: bool) -> None:
    check_look_for_room(in_jvm=in_jvm)
