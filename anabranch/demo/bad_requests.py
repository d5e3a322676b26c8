"""Requests with one fault each, and the error that each must be answered with."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anabranch.demo.features import INPUT_NAME, MODEL_NAME, TOKENS
from anabranch.schemas.open_inference_pb2 import ModelInferRequest

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class BadRequest:
    """A request that must fail.

    Attributes:
        kind: The fault, in words.
        id: The request's id; empty if the record has none that can be read, so that only a dead letter can be written.
        value: The record's value; None for a record without one.
        code: The code of the expected error.
        age_ms: Age of the record by its timestamp.
    """

    kind: str
    id: str
    value: bytes | None
    code: str
    age_ms: int = 0


def bad_requests(id_prefix: str, max_message_bytes: int) -> list[BadRequest]:
    """Make a request of each kind."""
    requests = [*_in_protobuf(id_prefix), *_in_json(id_prefix), *_unreadable()]
    padding = bytes(max_message_bytes)
    too_large = _message(f"{id_prefix}-too-large", raw=padding).SerializeToString()
    return [
        *requests,
        BadRequest("record over the size limit", f"{id_prefix}-too-large", too_large, "request_too_large"),
    ]


def _message(
    request_id: str,
    *,
    model: str = MODEL_NAME,
    version: str = "",
    name: str = INPUT_NAME,
    datatype: str = "INT32",
    shape: tuple[int, ...] = (1, TOKENS),
    raw: bytes | None = bytes(4 * TOKENS),
) -> ModelInferRequest:
    """Make a valid request, apart from the arguments."""
    message = ModelInferRequest(id=request_id, model_name=model, model_version=version)
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def _in_protobuf(prefix: str) -> Iterator[BadRequest]:
    def bad(kind: str, code: str, message: ModelInferRequest, age_ms: int = 0) -> BadRequest:
        message.id = f"{prefix}-{kind.replace(' ', '-')}"
        return BadRequest(kind, message.id, message.SerializeToString(), code, age_ms)

    yield bad("unknown model", "unknown_model", _message("", model="magic"))
    yield bad("unknown version", "unknown_version", _message("", version="99"))
    yield bad("unknown input", "unknown_input", _message("", name="octets"))
    yield bad("no input at all", "missing_input", ModelInferRequest(model_name=MODEL_NAME))
    twice = _message("")
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    yield bad("the same input twice", "unknown_input", twice)
    yield bad("another datatype than the model's", "wrong_datatype", _message("", datatype="FP32"))
    yield bad("a datatype that does not exist", "wrong_datatype", _message("", datatype="INT9"))
    yield bad("wrong rank", "wrong_shape", _message("", shape=(TOKENS,)))
    yield bad(
        "wrong size of a fixed axis", "wrong_shape", _message("", shape=(1, TOKENS - 1), raw=bytes(4 * TOKENS - 4))
    )
    yield bad("less data than the shape says", "wrong_size", _message("", raw=bytes(4 * TOKENS - 4)))
    yield bad("a shape of 8 petabytes", "wrong_size", _message("", shape=(2**40, TOKENS)))
    yield bad("zero rows", "empty_batch", _message("", shape=(0, TOKENS), raw=b""))
    yield bad("a negative axis", "malformed_request", _message("", shape=(-1, TOKENS)))
    mixed = _message("")
    mixed.inputs[0].contents.int_contents.extend([0] * TOKENS)
    yield bad("raw and typed contents at once", "malformed_request", mixed)
    other_field = _message("", raw=None)
    other_field.inputs[0].contents.fp32_contents.extend([0.0] * TOKENS)
    yield bad("typed contents of another datatype", "malformed_request", other_field)
    output = _message("")
    output.outputs.add(name="probability")
    yield bad("unknown output", "unknown_output", output)
    priority = _message("")
    priority.parameters["priority"].string_param = "high"
    yield bad("a priority that is a text", "invalid_parameter", priority)
    timeout = _message("")
    timeout.parameters["timeout"].int64_param = -1
    yield bad("a negative time-out", "invalid_parameter", timeout)
    late = _message("")
    late.parameters["timeout"].int64_param = 1_000_000
    yield bad("a deadline that has passed", "deadline_exceeded", late, age_ms=60_000)


def _in_json(prefix: str) -> Iterator[BadRequest]:
    def bad(kind: str, code: str, tensor: dict[str, Any]) -> BadRequest:
        request_id = f"{prefix}-{kind.replace(' ', '-')}"
        right = {"name": INPUT_NAME, "datatype": "INT32", "shape": [1, TOKENS], "data": [0] * TOKENS}
        document = {"id": request_id, "model_name": MODEL_NAME, "inputs": [right | tensor]}
        return BadRequest(kind, request_id, json.dumps(document).encode(), code)

    yield bad("JSON: a shape that is a text", "malformed_request", {"shape": f"1x{TOKENS}"})
    yield bad("JSON: texts for numbers", "malformed_request", {"data": ["zero"] * TOKENS})
    yield bad("JSON: a number out of range", "malformed_request", {"data": [2**31] * TOKENS})
    yield bad("JSON: fewer numbers than the shape says", "wrong_size", {"data": [0, 1, 2]})


def _unreadable() -> Iterator[BadRequest]:
    whole = _message("cut-short").SerializeToString()
    yield BadRequest("a message cut short", "", whole[:-1000], UNREADABLE)
    yield BadRequest("an empty record", "", b"", UNREADABLE)
    yield BadRequest("a record without a value", "", None, UNREADABLE)
    yield BadRequest("noise", "", bytes(range(255, 0, -1)), UNREADABLE)
    not_utf8 = _message("latin-one").SerializeToString().replace(b"latin-one", b"latin-\xe9\xe9\xe9")
    yield BadRequest("an id that is not UTF-8", "", not_utf8, UNREADABLE)
    yield BadRequest("JSON without its end", "", b'{"id": "half", "inputs": [', UNREADABLE)
