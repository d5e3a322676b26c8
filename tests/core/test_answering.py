"""Answering: one answer in the form of the request, and a letter beside every failure."""

import numpy as np
import pytest
from msgspec.structs import replace

from operators.core.admission import Admission
from operators.core.answering import Answer, Answering, Letter
from schemas import codec
from schemas.dead_letters import DeadLetter, decode_letter
from schemas.messages import ErrorResponse, Form, InferResponse
from schemas.records import Failure, Kind, Record, Source, encode_signature
from schemas.tensors import Tensor, raw_from_elements
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request

ANSWERING = Answering("requests", 10_000)
SOURCE = Source(3, 4, 5)
Y = Tensor.from_array("y", np.ones((1, 2), np.float32))
FAILURE = Failure("inference_failed", "poison", "infer")


def record(**options: object) -> Record:
    message = request(request_id="ä", **options)  # type: ignore[arg-type]
    return Record.decode(Admission(catalog(), MAX_MESSAGE_BYTES).admit(message, SOURCE, NOW_MS))


def opened(outputs: list[Answer | Letter]) -> tuple[list[InferResponse | ErrorResponse], list[DeadLetter]]:
    assert all(output.key == "ä".encode() for output in outputs)
    answers = [codec.decode_response(output.value) for output in outputs if isinstance(output, Answer)]
    return answers, [decode_letter(output.value) for output in outputs if isinstance(output, Letter)]


@pytest.mark.parametrize("form", list(Form))
def test_an_answer_has_the_form_of_its_request_and_no_letter(form: Form) -> None:
    [output] = ANSWERING.serve(record(form=form), (Y,))
    assert codec.is_json(output.value) == (form is Form.JSON)
    assert opened([output]) == ([InferResponse("rows", "10", "ä", (Y,))], [])


def test_an_answer_says_how_it_was_spread_only_where_that_was_asked_for() -> None:
    [plain] = ANSWERING.serve(record(), (Y,), shards=3, tasks=2)
    [asked] = ANSWERING.serve(record(parameters={"explain": True}), (Y,), shards=3, tasks=2)
    assert codec.decode_response(plain.value) == InferResponse("rows", "10", "ä", (Y,))
    assert codec.decode_response(asked.value) == InferResponse("rows", "10", "ä", (Y,), {"shards": 3, "tasks": 2})


@pytest.mark.parametrize("form", list(Form))
def test_a_failure_is_answered_and_put_into_a_letter_that_can_be_sent_again(form: Form) -> None:
    failed = record(form=form)
    answers, letters = opened(ANSWERING.fail(failed, FAILURE))
    assert answers == [ErrorResponse("ä", "inference_failed", "poison", "rows", "10")]
    [letter] = letters
    assert (letter.id, letter.code, letter.message, letter.stage) == ("ä", "inference_failed", "poison", "infer")
    assert (letter.model_name, letter.model_version) == ("rows", "10")
    assert (letter.source.topic, letter.source.partition, letter.source.offset) == ("requests", 3, 4)
    assert letter.original == failed.original
    again = Record.decode(Admission(catalog(), MAX_MESSAGE_BYTES).admit(letter.original, SOURCE, NOW_MS))
    assert again == failed


@pytest.mark.parametrize("form", list(Form))
def test_a_partial_answer_names_what_is_missing_and_has_a_letter_that_says_why(form: Form) -> None:
    partial = record(form=form)
    answers, letters = opened(ANSWERING.serve(partial, (Y,), missing=[(0, 2), (5, 5)], failure=FAILURE))
    said = {"missing_rows": "0-2,5-5", "error_code": "inference_failed", "error_message": "poison"}
    assert answers == [InferResponse("rows", "10", "ä", (Y,), said)]
    [letter] = letters
    assert (letter.code, letter.message, letter.stage, letter.model_name) == (*said_of(FAILURE), "rows")
    assert letter.original == partial.original


def said_of(failure: Failure) -> tuple[str, str, str]:
    return failure.code, failure.message, failure.stage


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(("kind", "stage"), [(Kind.REQUEST, "infer"), (Kind.OPENING, "aggregate")])
def test_an_answer_over_the_limit_becomes_an_error_within_it(form: Form, kind: Kind, stage: str) -> None:
    large = Tensor.from_array("y", np.ones((1, 10_000), np.float32))
    answers, letters = opened(ANSWERING.serve(replace(record(form=form), kind=kind), (large,)))
    [answer] = answers
    assert isinstance(answer, ErrorResponse)
    assert answer.code == letters[0].code == "response_too_large"
    assert letters[0].stage == stage
    assert len(letters) == 1


def test_an_answer_of_exactly_the_limit_passes() -> None:
    [output] = Answering("requests", 10**9).serve(record(), (Y,))
    assert isinstance(Answering("requests", len(output.value)).serve(record(), (Y,))[0], Answer)
    too_large = Answering("requests", len(output.value) - 1).serve(record(), (Y,))
    assert isinstance(codec.decode_response(too_large[0].value), ErrorResponse)


def test_an_original_over_the_limit_is_named_and_not_sent() -> None:
    _, letters = opened(ANSWERING.fail(replace(record(), original=bytes(10_001)), FAILURE))
    assert letters[0].original is None
    assert letters[0].source.offset == 4


def test_who_cannot_be_read_is_not_answered_but_put_into_a_letter() -> None:
    rejection = Record(Kind.REJECTION, SOURCE, encode_signature(Failure("unreadable", "no", "admit")), original=b"\xff")
    [letter] = ANSWERING.fail(rejection, Failure("unreadable", "no", "admit"))
    assert isinstance(letter, Letter)
    assert decode_letter(letter.value).original == b"\xff"


@pytest.mark.parametrize("stage", ["admit", "shard"])
def test_a_rejection_of_any_stage_is_answered_though_it_names_no_model(stage: str) -> None:
    failure = Failure("internal_error", "why", stage)
    rejection = Record(Kind.REJECTION, SOURCE, encode_signature(failure), "ä")
    answers, letters = opened(ANSWERING.fail(rejection, failure))
    assert answers == [ErrorResponse("ä", "internal_error", "why")]
    assert letters[0].stage == stage


def test_bytes_that_json_cannot_carry_become_an_error_rather_than_other_bytes() -> None:
    label = Tensor("label", "BYTES", (1,), raw_from_elements([b"\xff"]))
    answers, letters = opened(ANSWERING.serve(record(form=Form.JSON), (label,)))
    assert isinstance(answers[0], ErrorResponse)
    assert answers[0].code == letters[0].code == "wrong_datatype"
    assert isinstance(opened(ANSWERING.serve(record(), (label,)))[0][0], InferResponse)


def test_what_is_no_record_is_buried_with_its_bytes() -> None:
    letter = decode_letter(ANSWERING.bury(b"\xff\xfe", FAILURE).value)
    assert (letter.id, letter.original, letter.source.offset) == ("", b"\xff\xfe", -1)
    assert decode_letter(ANSWERING.bury(bytes(20_000), FAILURE).value).original is None
