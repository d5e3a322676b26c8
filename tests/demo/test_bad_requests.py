from typing import Any

import msgspec
import pytest

from anabranch.demo.bad_requests import UNREADABLE, BadRequest, bad_requests
from anabranch.demo.error_check import ErrorOutcome, _judge, _Seen
from anabranch.demo.local_job import make_repository
from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer
from anabranch.operators.core.requests import Refused
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.schemas.messages import Encoding, ErrorResponse
from anabranch.schemas.records import Source
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter
from tests.core.models import now_ms

NOW_MS = 1_700_000_000_000
MAX_MESSAGE_BYTES = 100_000
REQUESTS = bad_requests("test", MAX_MESSAGE_BYTES)


@pytest.fixture(scope="module")
def admission(tmp_path_factory: pytest.TempPathFactory) -> Admission:
    repository = make_repository(tmp_path_factory.mktemp("models"))
    return Admission(read_repository(repository, ModelDefaults()), MAX_MESSAGE_BYTES, 5, Defects(Meter()))


def judge_by_contract(admission: Admission, request: BadRequest) -> ErrorOutcome:
    """Admits and answers a request with the job's own classes."""
    source = Source(2, 7, NOW_MS - request.age_ms)
    refused = admission.admit(request.value, source, NOW_MS)
    assert isinstance(refused, Refused), request.kind
    seen = _Seen({}, {})
    for product in ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms).refuse(refused):
        if isinstance(product, Answer):
            seen.answers.setdefault(product.key.decode(), []).append(product.value)
        else:
            letter = decode_dead_letter(product.value)
            seen.letters[letter.source.partition, letter.source.offset] = letter
    return _judge(request, (2, 7), seen)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.kind)
def test_bad_request_each_kind_has_expected_error(admission: Admission, request_: BadRequest) -> None:
    outcome = judge_by_contract(admission, request_)
    assert (outcome.code, outcome.problem) == (request_.code, "")


def test_bad_requests_kinds_and_ids_are_unique() -> None:
    assert len({request.kind for request in REQUESTS}) == len(REQUESTS) >= 10
    assert len({request.code for request in REQUESTS}) >= 12
    ids = [request.id for request in REQUESTS if request.id]
    assert len(set(ids)) == len(ids)
    assert [request.kind for request in REQUESTS if not request.id] == [
        request.kind for request in REQUESTS if request.code == UNREADABLE
    ]


LETTER: dict[str, Any] = {
    "id": "id-1",
    "code": "wrong_shape",
    "message": "no",
    "stage": "admit",
    "source": {"topic": "t", "partition": 0, "offset": 0, "timestamp_ms": 0},
    "original": "Pz8=",
}
REQUEST = BadRequest("a kind", "id-1", b"??", "wrong_shape")


def answer(code: str = "wrong_shape", encoding: Encoding = Encoding.PROTOBUF) -> bytes:
    return codec.encode_response(ErrorResponse("id-1", code, "no"), encoding)


@pytest.mark.parametrize(
    ("letter", "answers", "problem"),
    [
        ({}, [answer()], ""),
        (None, [answer()], "no dead letter"),
        ({"code": "wrong_size"}, [answer()], "the dead letter says wrong_size, not wrong_shape"),
        ({"id": ""}, [answer()], "the dead letter has the id ''"),
        ({"original": "AAAA"}, [answer()], "the dead letter holds other bytes than were sent"),
        ({"original": None}, [answer()], ""),
        ({}, [], "0 answers instead of one"),
        ({}, [answer(), answer()], "2 answers instead of one"),
        ({}, [answer("wrong_size")], "the answer says wrong_size, not wrong_shape"),
        ({}, [answer(encoding=Encoding.JSON)], "the answer is not in the encoding of the request"),
        ({}, [b"\xff"], "the answer cannot be read: the message is not a ModelInferResponse: read the response topic"),
        ({}, [b""], "it was answered with outputs"),
    ],
)
def test_judge_difference_is_named(letter: dict[str, Any] | None, answers: list[bytes], problem: str) -> None:
    letters = {} if letter is None else {(0, 0): msgspec.convert(LETTER | letter, DeadLetter)}
    assert _judge(REQUEST, (0, 0), _Seen({"id-1": answers}, letters)).problem == problem
