"""Bad requests get errors that name the fault; other requests get their answers."""

import numpy as np

from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from tests.flink.service import Topics

ROW = Tensor.from_array("x", np.ones((1, 4), np.float32))


def encoded(request_id: str, **changes: object) -> bytes:
    fields: dict[str, object] = {"model_name": "double", "inputs": (ROW,), "id": request_id} | changes
    return codec.encode_request(InferRequest(**fields))  # type: ignore[arg-type]


def tensor(
    name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 4), data: bytes = b"\0" * 16
) -> Tensor:
    return Tensor(name, datatype, shape, data)


#: Readable: each is answered with this code.
ANSWERED = {
    "unknown_model": encoded("unknown_model", model_name="nobody"),
    "unknown_version": encoded("unknown_version", model_version="99"),
    "unknown_input": encoded("unknown_input", inputs=(tensor("z"),)),
    "missing_input": encoded("missing_input", inputs=()),
    "unknown_output": encoded("unknown_output", outputs=("z",)),
    "wrong_datatype": encoded("wrong_datatype", inputs=(tensor(datatype="INT32"),)),
    "wrong_shape": encoded("wrong_shape", inputs=(tensor(shape=(4,)),)),
    "wrong_size": encoded("wrong_size", inputs=(tensor(data=b"\0" * 15),)),
    "empty_batch": encoded("empty_batch", inputs=(tensor(shape=(0, 4), data=b""),)),
    "malformed_request": encoded("malformed_request", inputs=(tensor(shape=(-1, 4)),)),
    "invalid_parameter": encoded("invalid_parameter", parameters={"priority": "high"}),
    "request_too_large": encoded("request_too_large", inputs=(tensor(shape=(1_250_000, 4), data=bytes(20_000_000)),)),
}
#: Unreadable: each becomes a dead letter, and nothing else.
UNREADABLE = (
    None,
    b"",
    b"\x00",
    b"hello, world",
    encoded("truncated")[:-5],
    encoded("x").replace(b"\x1a\x01x", b"\x1a\x01\xff"),
    b'{"id": "cut off", "inputs": [',
    b"\xff" * 100,
)


def test_bad_requests_get_typed_errors_and_others_answers(service: Topics) -> None:
    letters_before = len(service.letters)
    neighbours = [f"neighbour {n}" for n in range(30)]
    mixed: list[bytes | None] = [encoded(name) for name in neighbours]
    for position, bad in enumerate([*ANSWERED.values(), *UNREADABLE]):
        mixed.insert(position * 2 % len(mixed), bad)
    service.send(*mixed)

    answers = service.await_answers([*neighbours, *ANSWERED])
    for code in ANSWERED:
        answer = answers[code]
        assert isinstance(answer, ErrorResponse), code
        assert answer.code == code
        assert answer.message
    for name in neighbours:
        assert isinstance(answers[name], InferResponse), answers[name]

    letters = service.await_letters(letters_before + len(ANSWERED) + len(UNREADABLE))[letters_before:]
    assert len(letters) == len(ANSWERED) + len(UNREADABLE)
    by_id = {letter.id: letter for letter in letters if letter.id}
    for code, message in ANSWERED.items():
        assert by_id[code].code == code
        assert by_id[code].stage == "admit"
        assert by_id[code].original == (None if code == "request_too_large" else message)
        assert by_id[code].source.topic == service.config.kafka.requests_topic
    unreadable = [letter for letter in letters if letter.code == "unreadable"]
    assert sorted(letter.original or b"" for letter in unreadable) == sorted(message or b"" for message in UNREADABLE)
    places = {(letter.source.partition, letter.source.offset) for letter in letters}
    assert len(places) == len(letters)
    assert "" not in service.answers
