"""Operators share a task's lock and sessions from `open` to `close`, in any order of opening and closing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any
from unittest.mock import Mock

import pytest

from anabranch.operators.aggregate import AggregateFunction
from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.infer import InferFunction
from anabranch.operators.runtime import operator_runtime
from anabranch.operators.runtime.operator_runtime import OperatorRuntime
from anabranch.operators.runtime.process_runtime import ProcessRuntime
from anabranch.operators.serve import ServeFunction
from anabranch.operators.stage import StageFunction
from anabranch.schemas.model import Catalog, ModelSpec, StageSpec, TensorSpec

OPTIONS = TransportOptions(job="job", shares_memory=True)
X = (TensorSpec("x", "FP32", (None, 2)),)
WHOLE = ModelSpec("m", "1", "/m.onnx", "m", X, X)
STAGED = replace(
    WHOLE,
    name="s",
    stages=tuple(StageSpec(f"/{index}.onnx", str(index), X, X, replicas=1) for index in range(2)),
)
CATALOG = Catalog({"m": {"1": WHOLE}, "s": {"1": STAGED}})


@dataclass(frozen=True)
class Backend:
    """Records loaded models by path; all instances with one list are equal."""

    loaded: tuple[list[str]] = ([],)

    def __hash__(self) -> int:
        return 0

    def load(self, model: ModelSpec) -> FakeSession:
        self.loaded[0].append(model.path)
        return FakeSession(dict)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessRuntime]:
    made = ProcessRuntime()
    monkeypatch.setattr(operator_runtime, "PROCESS", made)
    yield made
    assert made.holders("job") == 0


@pytest.fixture
def backend() -> Backend:
    return Backend(([],))


def context(task: int = 0, attempt: int = 0) -> Any:
    return Mock(
        _runtime_context=None,
        **{
            "get_index_of_this_subtask.return_value": task,
            "get_number_of_parallel_subtasks.return_value": 2,
            "get_attempt_number.return_value": attempt,
        },
    )


def runtime(task: int = 0, attempt: int = 0, job: str = "job") -> OperatorRuntime:
    options = TransportOptions(job=job)
    return OperatorRuntime(context(task, attempt), "serve", options, ResponseWriter("requests", 1000, lambda: 0.0))


def operators(backend: Backend) -> list[Any]:
    def writer() -> ResponseWriter:
        return ResponseWriter("requests", 1000, lambda: 0.0)

    policy = SchedulingPolicy()
    return [
        ServeFunction(CATALOG, backend, writer(), 1000, policy, tuple(range(4)), OPTIONS),
        InferFunction(CATALOG, backend, writer(), OPTIONS, 50.0),
        StageFunction(STAGED, 1, backend, writer(), OPTIONS, 2),
        AggregateFunction(writer(), policy, OPTIONS),
    ]


def test_lock_is_shared_by_the_operators_of_a_task(process: ProcessRuntime) -> None:
    serve, infer, second, other = runtime(), runtime(), runtime(task=1), runtime(job="other")
    lock = serve.lock()
    assert infer.lock() is lock
    assert second.lock() is not lock
    assert other.lock() is not lock
    for each in (serve, infer, second, other):
        each.close()


def test_lock_of_a_failed_attempt_is_not_taken_over(process: ProcessRuntime) -> None:
    failed = runtime()
    lock = failed.lock()
    with lock.own_batch():
        restarted = runtime(attempt=1)
        assert restarted.lock() is not lock
    failed.close()
    assert restarted.lock() is not lock
    restarted.close()


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_operators_closed_in_any_order_leave_nothing(
    process: ProcessRuntime, backend: Backend, order: tuple[int, ...]
) -> None:
    opened = operators(backend)
    for operator in opened:
        operator.open(context())
    assert process.holders("job") == 4
    assert sorted(backend.loaded[0]) == ["/1.onnx", "/m.onnx"], "serve and infer share a session"
    for index in order:
        opened[index].close()
    assert process.holders("job") == 0
    assert process._entries == {}


def test_operator_closed_twice_keeps_what_others_hold(process: ProcessRuntime, backend: Backend) -> None:
    serve, infer, *_ = operators(backend)
    for operator in (serve, infer):
        operator.open(context())
    serve.close()
    serve.close()
    assert process.holders("job") == 1
    late = operators(backend)[0]
    late.open(context())
    assert backend.loaded[0] == ["/m.onnx"], "infer still holds the session"
    infer.close()
    late.close()


def test_failover_without_close_replaces_the_attempt(process: ProcessRuntime, backend: Backend) -> None:
    failed, restarted = operators(backend), operators(backend)
    for operator in failed:
        operator.open(context(attempt=0))
    for operator in reversed(restarted):
        operator.open(context(attempt=1))
    assert process.holders("job") == 4
    for operator in failed:
        operator.close()
    assert process.holders("job") == 4, "late closes change nothing"
    for operator in restarted:
        operator.close()
    assert process._entries == {}


def test_tasks_of_one_process_share_no_session(process: ProcessRuntime, backend: Backend) -> None:
    opened = [operators(backend)[0] for _ in range(2)]
    for task, operator in enumerate(opened):
        operator.open(context(task))
    assert backend.loaded[0] == ["/m.onnx", "/m.onnx"]
    for operator in opened:
        operator.close()
