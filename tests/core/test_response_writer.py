"""ResponseWriter: one answer in the encoding of the request, and a dead letter for every failure."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.merging.row_ranges import BatchOutputs
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.requests import Refused, Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.messages import Encoding, ErrorResponse, InferResponse
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure, decode_signature
from anabranch.schemas.tensors import Tensor, raw_from_elements
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, now_ms, request

WRITER = ResponseWriter("requests", 10_000, now_ms)
SOURCE = Source(3, 4, 5)
Y = Tensor.from_array("y", np.ones((1, 2), np.float32))
FAILURE = Failure("inference_failed", "poison", "infer")


def admitted(**options: Any) -> Request:
    message = request(request_id="ä", **options)
    found = Admission(catalog(), MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(message, SOURCE, NOW_MS)
    assert isinstance(found, Request)
    return found


def serve(
    served: Request,
    outputs: tuple[Tensor, ...],
    *,
    by: ResponseWriter = WRITER,
    phase: str = "infer",
    **options: Any,
) -> list[Answer | DeadLetterRecord]:
    return by.answer(served, outputs, phase=phase, **options)


def opened(outputs: list[Answer | DeadLetterRecord]) -> tuple[list[InferResponse | ErrorResponse], list[DeadLetter]]:
    assert all(output.key == "ä".encode() for output in outputs)
    answers = [codec.decode_response(output.value) for output in outputs if isinstance(output, Answer)]
    return answers, [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]


@pytest.mark.parametrize("encoding", list(Encoding))
def test_writer_answer_has_the_encoding_of_its_request(encoding: Encoding) -> None:
    [output] = serve(admitted(encoding=encoding), (Y,))
    assert codec.encoding_of(output.value) is encoding
    assert opened([output]) == ([InferResponse("rows", "10", "ä", (Y,))], [])


def test_writer_answer_counts_shards_only_on_demand() -> None:
    [plain] = serve(admitted(), (Y,), shards=3, tasks=2)
    [asked] = serve(admitted(parameters={"explain": True}), (Y,), shards=3, tasks=2)
    assert codec.decode_response(plain.value) == InferResponse("rows", "10", "ä", (Y,))
    assert codec.decode_response(asked.value) == InferResponse("rows", "10", "ä", (Y,), {"shards": 3, "tasks": 2})


@pytest.mark.parametrize("encoding", list(Encoding))
def test_writer_explained_answer_has_a_breakdown(encoding: Encoding) -> None:
    asked = admitted(parameters={"explain": True}, encoding=encoding)
    breakdown = LatencyBreakdown(
        NOW_MS - 21, NOW_MS - 20, NOW_MS - 18, NOW_MS - 15, NOW_MS - 14.5, NOW_MS - 4, NOW_MS - 3
    )
    [answer] = serve(asked, (Y,), breakdown=breakdown)
    found = codec.decode_response(answer.value)
    assert isinstance(found, InferResponse)
    times = {name: value for name, value in found.parameters.items() if name.endswith("_us")}
    assert times == {
        "broker_us": 1000,
        "admit_us": 2000,
        "queue_us": 3000,
        "batch_us": 500,
        "session_us": 10_500,
        "merge_us": 1000,
        "encode_us": 3000,
    }
    assert "batch" not in found.parameters
    [of_task] = serve(asked, (Y,), breakdown=breakdown, task=3)
    found = codec.decode_response(of_task.value)
    assert isinstance(found, InferResponse)
    assert (found.parameters["task"], found.parameters["batch"]) == (3, round((NOW_MS - 14.5) * 1000))
    assert not [
        output
        for output in serve(admitted(encoding=encoding), (Y,), breakdown=breakdown)
        if b"broker_us" in output.value
    ]


@pytest.mark.parametrize("encoding", list(Encoding))
def test_writer_failure_has_a_resendable_dead_letter(encoding: Encoding) -> None:
    failed = admitted(encoding=encoding)
    answers, dead_letters = opened(WRITER.fail(failed, FAILURE))
    assert answers == [ErrorResponse("ä", "inference_failed", "poison", "rows", "10")]
    [dead_letter] = dead_letters
    assert (dead_letter.id, dead_letter.code, dead_letter.message, dead_letter.stage) == (
        "ä",
        "inference_failed",
        "poison",
        "infer",
    )
    assert (dead_letter.model_name, dead_letter.model_version) == ("rows", "10")
    assert (dead_letter.source.topic, dead_letter.source.partition, dead_letter.source.offset) == ("requests", 3, 4)
    assert dead_letter.original == failed.original
    assert (
        Admission(catalog(), MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(dead_letter.original, SOURCE, NOW_MS)
        == failed
    )


@pytest.mark.parametrize("encoding", list(Encoding))
def test_writer_partial_answer_names_missing_rows(encoding: Encoding) -> None:
    partial = admitted(encoding=encoding)
    answers, dead_letters = opened(serve(partial, (Y,), missing=[(0, 2), (5, 5)], failure=FAILURE))
    said = {"missing_rows": "0-2,5-5", "error_code": "inference_failed", "error_message": "poison"}
    assert answers == [InferResponse("rows", "10", "ä", (Y,), said)]
    [dead_letter] = dead_letters
    assert (dead_letter.code, dead_letter.message, dead_letter.stage, dead_letter.model_name) == (
        *said_of(FAILURE),
        "rows",
    )
    assert dead_letter.original == partial.original


def said_of(failure: Failure) -> tuple[str, str, str]:
    return failure.code, failure.message, failure.stage


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("stage", ["infer", "aggregate"])
def test_writer_answer_over_the_limit_becomes_an_error(encoding: Encoding, stage: str) -> None:
    large = Tensor.from_array("y", np.ones((1, 10_000), np.float32))
    answers, dead_letters = opened(serve(admitted(encoding=encoding), (large,), phase=stage))
    [answer] = answers
    assert isinstance(answer, ErrorResponse)
    assert answer.code == dead_letters[0].code == "response_too_large"
    assert dead_letters[0].stage == stage
    assert len(dead_letters) == 1


def test_writer_answer_of_exactly_the_limit_passes() -> None:
    [output] = ResponseWriter("requests", 10**9, now_ms).answer(admitted(), (Y,), phase="infer")
    assert isinstance(
        ResponseWriter("requests", len(output.value), now_ms).answer(admitted(), (Y,), phase="infer")[0], Answer
    )
    too_large = ResponseWriter("requests", len(output.value) - 1, now_ms).answer(admitted(), (Y,), phase="infer")
    assert isinstance(codec.decode_response(too_large[0].value), ErrorResponse)


def test_letter_original_has_a_limit_of_its_own() -> None:
    writer = ResponseWriter("requests", 10_000, now_ms, max_original_bytes=100)
    for size, original in ((100, bytes(100)), (101, None)):
        _, letters = opened(writer.fail(replace(admitted(), original=bytes(size)), FAILURE))
        assert letters[0].original == original


@pytest.mark.parametrize("code", ["deadline_exceeded", "model_unavailable", "overloaded"])
def test_letter_for_load_names_the_record_and_does_not_repeat_it(code: str) -> None:
    refused = Refused(SOURCE, "ä", Encoding.JSON, b"whole", Failure(code, "busy", "admit"))
    for repeats_all, original in ((False, None), (True, b"whole")):
        writer = ResponseWriter("requests", 10_000, now_ms, repeats_all=repeats_all)
        for products in (writer.refuse(refused), writer.fail(replace(admitted(), original=b"whole"), refused.failure)):
            _, [letter] = opened(products)
            assert (letter.original, letter.source.topic, letter.source.offset) == (original, "requests", 4)


def test_writer_original_over_the_limit_is_not_sent() -> None:
    _, dead_letters = opened(WRITER.fail(replace(admitted(), original=bytes(10_001)), FAILURE))
    assert dead_letters[0].original is None
    assert dead_letters[0].source.offset == 4


def test_writer_unreadable_request_gets_only_a_dead_letter() -> None:
    refused = Refused(SOURCE, "", Encoding.PROTOBUF, b"\xff", Failure("unreadable", "no", "admit"))
    [dead_letter] = WRITER.refuse(refused)
    assert isinstance(dead_letter, DeadLetterRecord)
    assert decode_dead_letter(dead_letter.value).original == b"\xff"


@pytest.mark.parametrize("encoding", list(Encoding))
def test_writer_refusal_without_model_is_answered(encoding: Encoding) -> None:
    refused = Refused(SOURCE, "ä", encoding, b"bytes", Failure("wrong_shape", "why", "admit"))
    outputs = WRITER.refuse(refused)
    assert codec.encoding_of(outputs[0].value) is encoding
    answers, dead_letters = opened(outputs)
    assert answers == [ErrorResponse("ä", "wrong_shape", "why")]
    assert (dead_letters[0].stage, dead_letters[0].original) == ("admit", b"bytes")


# ---- batches -------------------------------------------------------------------------------------------------------


def test_writer_batch_equals_single_answers() -> None:
    ids = ["", "ä", "x" * 300, "b", "c"]
    forms = [Encoding.PROTOBUF, Encoding.PROTOBUF, Encoding.PROTOBUF, Encoding.JSON, Encoding.PROTOBUF]
    rows = [1, 2, 1, 3, 2]
    requests = [
        replace(admitted(values=[1.0] * count), id=name, encoding=encoding, explain=name == "c")
        for name, encoding, count in zip(ids, forms, rows, strict=True)
    ]
    y = np.arange(18, dtype=np.float32).reshape(9, 2)
    label = np.array([f"{n}" * n for n in range(9)], dtype=object)
    served = BatchOutputs(0, 9, ("y", "label"), [y, label])
    together = WRITER.answer_batch(requests, decode_signature(requests[0].signature), served, phase="infer", task=0)
    alone: list[Answer | DeadLetterRecord] = []
    first = 0
    for each in requests:
        outputs = (
            Tensor.from_array("y", y[first : first + each.rows]),
            Tensor.from_array("label", label[first : first + each.rows]),
        )
        alone += serve(each, outputs, phase="infer", task=0)
        first += each.rows
    assert together == alone
    assert [output.key.decode() for output in together] == ids


def test_writer_batch_with_one_answer_over_the_limit() -> None:
    requests = [replace(admitted(values=[1.0] * rows), id=f"{rows}") for rows in (1, 200, 2)]
    y = np.ones((203, 2), np.float32)
    outputs = ResponseWriter("requests", 1_000, now_ms).answer_batch(
        requests, decode_signature(requests[0].signature), BatchOutputs(0, 203, ("y",), [y]), phase="infer", task=0
    )
    answers = [codec.decode_response(output.value) for output in outputs if isinstance(output, Answer)]
    assert [(answer.id, isinstance(answer, ErrorResponse)) for answer in answers] == [
        ("1", False),
        ("200", True),
        ("2", False),
    ]
    assert len(outputs) == 4  # and a dead letter


def test_writer_bytes_unfit_for_json_become_an_error() -> None:
    label = Tensor("label", "BYTES", (1,), raw_from_elements([b"\xff"]))
    answers, dead_letters = opened(serve(admitted(encoding=Encoding.JSON), (label,)))
    assert isinstance(answers[0], ErrorResponse)
    assert answers[0].code == dead_letters[0].code == "wrong_datatype"
    assert isinstance(opened(serve(admitted(), (label,)))[0][0], InferResponse)
