"""The job on a MiniCluster, in both execution modes, answers requests with the right values."""

import time
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.tensors import Tensor
from tests.flink.service import Topics

FORMS = pytest.mark.parametrize("encoding", list(Encoding))


def ask(service: Topics, request: InferRequest) -> InferResponse:
    [answer] = service.ask(request)
    assert isinstance(answer, InferResponse), answer
    return answer


def request(
    model: str,
    inputs: dict[str, npt.ArrayLike],
    *,
    encoding: Encoding = Encoding.PROTOBUF,
    version: str = "",
    outputs: tuple[str, ...] = (),
    **parameters: Parameter,
) -> InferRequest:
    tensors = tuple(Tensor.from_array(name, array) for name, array in inputs.items())
    return InferRequest(model, tensors, f"é-{uuid.uuid4().hex[:12]}", version, parameters, outputs, encoding)


def values(answer: InferResponse) -> dict[str, Any]:
    return {tensor.name: tensor.to_array() for tensor in answer.outputs}


@FORMS
def test_each_kind_of_model_answers_with_its_values(service: Topics, encoding: Encoding) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(values(ask(service, request("double", {"x": x}, encoding=encoding)))["y"], 2 * x + 2)
    assert np.array_equal(
        values(ask(service, request("double", {"x": x}, encoding=encoding, version="1")))["y"], 2 * x + 1
    )

    half = x.astype(np.float16)
    assert np.array_equal(values(ask(service, request("half", {"x": half}, encoding=encoding)))["y"], half + half)

    a, b = np.full((2, 3), 5, np.float32), np.full((2, 3), 7, np.float32)
    both = values(ask(service, request("pair", {"b": b, "a": a}, encoding=encoding)))
    assert np.array_equal(both["sum"], a + b)
    assert np.array_equal(both["product"], a * b)
    assert list(values(ask(service, request("pair", {"a": a, "b": b}, encoding=encoding, outputs=("product",))))) == [
        "product"
    ]

    text = np.array([["naïve", ""], ["b", "日本"]], dtype=object)
    expected = [[b"na\xc3\xafve", b""], [b"b", "日本".encode()]]
    assert values(ask(service, request("text", {"s": text}, encoding=encoding)))["t"].tolist() == expected


def test_different_shapes_are_answered_in_separate_batches(service: Topics) -> None:
    rows = [np.full((1 + n % 2, 1 + n % 3), n, np.float32) for n in range(24)]
    answers = service.ask(*(request("wide", {"x": row}) for row in rows))
    for row, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(values(answer)["y"], row.mean(axis=1, keepdims=True))


def test_models_with_fixed_or_no_batch_axis_answer(service: Topics) -> None:
    x = np.arange(100, dtype=np.float32).reshape(50, 2)
    answer = ask(service, request("single", {"x": x}, explain=True))
    assert np.array_equal(values(answer)["y"], 3 * x)
    assert answer.parameters["shards"] == 2
    assert values(ask(service, request("scalar", {"x": x})))["y"] == x.sum()


@FORMS
def test_large_request_is_split_and_merged_in_order(service: Topics, encoding: Encoding) -> None:
    x = np.arange(4 * 1001, dtype=np.float32).reshape(1001, 4)
    answer = ask(service, request("double", {"x": x}, encoding=encoding, explain=True))
    assert np.array_equal(values(answer)["y"], 2 * x + 2)
    assert {name: answer.parameters[name] for name in ("shards", "tasks")} == {"shards": 63, "tasks": 2}


@pytest.mark.parametrize("rows", [1, 200])
def test_explained_answer_has_a_latency_breakdown(service: Topics, rows: int) -> None:
    def ask_once() -> tuple[float, float]:
        start_s = time.time()
        answer = ask(service, request("double", {"x": np.ones((rows, 4), np.float32)}, explain=True))
        end_s = time.time()
        spent_ms = [int(answer.parameters[f"{stage}_us"]) / 1000 for stage in PHASES]
        return sum(spent_ms), (end_s - start_s) * 1000

    # The sender's time also includes the broker.
    told_ms, seen_ms = zip(*[ask_once() for _ in range(5)], strict=True)
    assert all(0 < told <= seen + 1 for told, seen in zip(told_ms, seen_ms, strict=True))


def test_burst_of_all_sizes_is_answered_once_each(service: Topics) -> None:
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal((int(rows), 4)).astype(np.float32) for rows in rng.integers(1, 60, 400)]
    requests = [request("double", {"x": x}, priority=n % 3) for n, x in enumerate(inputs)]
    for x, answer in zip(inputs, service.ask(*requests), strict=True):
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(values(answer)["y"], 2 * x + 2)
    service.read_answers(timeout_ms=500)
    assert all(len(service.answers[sent.id]) == 1 for sent in requests)


def test_large_waiting_requests_keep_their_bytes(service: Topics) -> None:
    # In thread mode they stay in Java's memory, which has no room for all of them and is reused after an answer. Eight
    # widths keep every batch waiting for its whole delay.
    rows = [np.full((1, 40_000 + n % 8), n, np.float32) for n in range(400)]
    answers = service.ask(*(request("patient", {"x": row}) for row in rows))
    for n, answer in enumerate(answers):
        assert isinstance(answer, InferResponse), answer
        assert values(answer)["y"] == n


def test_bad_row_fails_its_request_alone(service: Topics) -> None:
    good = [request("lookup", {"i": np.array([n % 8])}) for n in range(20)]
    bad = request("lookup", {"i": np.array([99])})
    *answers, failure = service.ask(*good, bad)
    for n, answer in enumerate(answers):
        assert isinstance(answer, InferResponse), answer
        assert values(answer)["y"] == [n % 8 * 10]
    assert isinstance(failure, ErrorResponse)
    assert failure.code == "inference_failed"


@pytest.mark.parametrize("rows", [20, 200])
def test_partial_answer_names_the_failed_rows(service: Topics, rows: int) -> None:
    """20 rows run in one batch, 200 as shards of 32."""
    i = np.arange(rows) % 8
    i[[3, 4, rows - 1]] = 99
    good = np.delete(np.arange(rows), [3, 4, rows - 1])
    answer = ask(service, request("lookup", {"i": i}, partial=True))
    assert answer.parameters["missing_rows"] == f"3-4,{rows - 1}-{rows - 1}"
    assert answer.parameters["error_code"] == "inference_failed"
    assert np.array_equal(values(answer)["y"], i[good] * 10)

    [failure] = service.ask(request("lookup", {"i": i}))
    assert isinstance(failure, ErrorResponse)
    assert failure.code == "inference_failed"


def test_request_past_its_deadline_is_not_run(service: Topics) -> None:
    [failure] = service.ask(request("double", {"x": np.zeros((1, 4), np.float32)}, timeout=1))
    assert isinstance(failure, ErrorResponse)
    assert failure.code == "deadline_exceeded"


def test_requests_with_equal_ids_are_answered_twice(service: Topics) -> None:
    one, two = (request("double", {"x": np.full((n, 4), n, np.float32)}) for n in (40, 41))
    service.ask(InferRequest(one.model_name, one.inputs, "twin"), InferRequest(two.model_name, two.inputs, "twin"))
    while len(service.answers["twin"]) < 2:
        service.read_answers()
    sums = sorted(float(values(answer)["y"].sum()) for answer in service.answers["twin"])  # type: ignore[arg-type]
    assert sums == [4.0 * 40 * 82, 4.0 * 41 * 84]
