"""The checker finds each violation that is planted into the records of a clean run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import encode_dead_letter
from tests.chaos.checker import Checker, Generation, TopicRecord, Verdict
from tests.chaos.models import Reference
from tests.chaos.workload import POISON_KINDS, UNREADABLE, Outgoing, good_request, poison

COUNT = 300


@dataclass
class Topics:
    """The records of a run."""

    requests: list[TopicRecord]
    answers: list[TopicRecord]
    letters: list[TopicRecord]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("chaos") / "models")


@pytest.fixture
def clean(reference: Reference) -> Topics:
    """The records of a run without a violation: good requests, and one of each bad kind."""
    outgoing = [good_request(7, number) for number in range(COUNT)]
    outgoing += [poison(f"p{number}", kind) for number, kind in enumerate(POISON_KINDS)]
    topics = Topics([], [], [])
    for offset, record in enumerate(outgoing):
        topics.requests.append(TopicRecord(0, offset, record.key, record.value, expected=record.code))
        if record.code:
            failure = Failure(record.code, "is bad", "admit")
            letter = encode_dead_letter("requests", Source(0, offset, 0), "", failure, None)
            topics.letters.append(TopicRecord(0, len(topics.letters), b"", letter))
        if record.code != UNREADABLE:
            name, value = _answer(reference, record)
            topics.answers.append(TopicRecord(0, len(topics.answers), name.encode(), value, seen_s=offset))
    return topics


def _answer(reference: Reference, record: Outgoing) -> tuple[str, bytes]:
    assert record.value is not None
    if record.code:
        name, encoding = codec.find_id(record.value)
        return name, codec.encode_response(ErrorResponse(name, record.code, "is bad"), encoding)
    request = codec.decode_request(record.value)
    return request.id, codec.encode_response(_served(reference, request), Encoding.PROTOBUF)


def _served(reference: Reference, request: InferRequest, version: str = "") -> InferResponse:
    version = version or request.model_version or ("2" if request.model_name == "double" else "1")
    inputs = {tensor.name: tensor.to_array() for tensor in request.inputs}
    outputs = reference.run(request.model_name, version, inputs)
    tensors = tuple(Tensor.from_array(name, array) for name, array in outputs.items())
    return InferResponse(request.model_name, version, request.id, tensors)


def judge(reference: Reference, topics: Topics, *, exactly_once: bool = True, order: bool = True) -> Verdict:
    return Checker(reference, exactly_once, order).check(topics.requests, topics.answers, topics.letters)


def test_checker_clean_run_has_no_violation(reference: Reference, clean: Topics) -> None:
    found = judge(reference, clean)
    assert found.is_clean, found.examples
    assert (found.requests, found.answers) == (len(clean.requests), len(clean.answers))
    assert found.by_kind["poison"] == len(POISON_KINDS) > 20
    assert found.ordered > 10
    assert found.repeated == 0


def _drop_answer(topics: Topics) -> None:
    del topics.answers[50]


def _drop_letter(topics: Topics) -> None:
    del topics.letters[-1]


def _double_answer(topics: Topics) -> None:
    topics.answers.append(replace(topics.answers[50], offset=COUNT * 2))


def _double_letter(topics: Topics) -> None:
    topics.letters.append(topics.letters[3])


def _swap_answers(topics: Topics) -> None:
    keys = [record.key for record in topics.requests]
    key = next(key for key in keys if key.startswith(b"ordered") and keys.count(key) > 1)
    first, second = (number for number, other in enumerate(keys) if other == key and keys[:number].count(key) < 2)
    answers = topics.answers
    a, b = answers[first], answers[second]
    answers[first], answers[second] = replace(b, offset=a.offset), replace(a, offset=b.offset)


def _change_value(topics: Topics) -> None:
    number = next(at for at, record in enumerate(topics.requests) if record.key.startswith(b"ordered"))
    answer = codec.decode_response(topics.answers[number].value or b"")
    assert isinstance(answer, InferResponse)
    array = answer.outputs[0].to_array().copy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(np.inf))
    changed = codec.encode_response(
        InferResponse(answer.model_name, "2", answer.id, (Tensor.from_array("y", array),)), Encoding.PROTOBUF
    )
    topics.answers[number] = replace(topics.answers[number], value=changed)


def _fail_good_request(topics: Topics) -> None:
    name = topics.answers[50].key.decode()
    error = codec.encode_response(ErrorResponse(name, "internal_error", "is broken"), Encoding.PROTOBUF)
    topics.answers[50] = replace(topics.answers[50], value=error)


def _change_code(topics: Topics) -> None:
    record = topics.answers[-1]
    error = codec.encode_response(ErrorResponse(record.key.decode(), "unknown_input", ""), Encoding.PROTOBUF)
    topics.answers[-1] = replace(record, value=error)


def _answer_unasked(topics: Topics) -> None:
    topics.requests.pop(50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "violation"),
    [
        (_drop_answer, "lost"),
        (_drop_letter, "lost"),
        (_double_answer, "doubled"),
        (_double_letter, "doubled"),
        (_swap_answers, "disordered"),
        (_change_value, "wrong"),
        (_fail_good_request, "wrong"),
        (_change_code, "wrong"),
        (_answer_unasked, "wrong"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value,
)
def test_checker_planted_violation_is_found(
    reference: Reference, clean: Topics, plant: Callable[[Topics], None], violation: str
) -> None:
    plant(clean)
    found = judge(reference, clean)
    counts = {name: getattr(found, name) for name in ("lost", "wrong", "doubled", "disordered")}
    assert counts == dict.fromkeys(counts, 0) | {violation: 1}, found.examples
    assert not found.is_clean
    assert found.examples[0].startswith(violation)


def test_checker_repeated_answer_is_no_violation_at_least_once(reference: Reference, clean: Topics) -> None:
    _double_answer(clean)
    found = judge(reference, clean, exactly_once=False)
    assert found.is_clean
    assert found.repeated == 1


@pytest.mark.parametrize(("version", "seen_s", "is_right"), [("1", 5, True), ("2", 25, True), ("1", 25, False)])
def test_checker_version_of_another_time_is_wrong(
    reference: Reference, version: str, seen_s: float, is_right: bool
) -> None:
    """Models change between 10 and 20 s: the old ones may answer until then, and the new ones from 10 s on."""
    request = next(
        record
        for record in (good_request(7, number) for number in range(COUNT))
        if record.kind == "small" and not codec.decode_request(record.value or b"").model_version
    )
    asked = codec.decode_request(request.value or b"")
    value = codec.encode_response(_served(reference, asked, version), Encoding.PROTOBUF)
    answer = TopicRecord(0, 0, asked.id.encode(), value, seen_s=seen_s)
    sent_s = {asked.id: seen_s - 1}
    generations = [Generation(0, until_s=20), Generation(1, from_s=10)]
    checker = Checker(reference, True, False, generations, sent_s)
    found = checker.check([TopicRecord(0, 0, request.key, request.value)], [answer], [])
    assert found.is_clean == is_right, found.examples
