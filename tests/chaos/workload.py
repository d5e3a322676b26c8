"""Requests of a chaos run, by number: the same seed gives the same requests."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from anabranch.schemas.messages import Encoding, InferRequest
from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from tests.chaos.models import SMALL_INPUTS

#: Header of a record with the error code that it must be answered with.
EXPECTED_HEADER = "chaos-expected"
#: Requests with such a key are for one model and unsplit: their answers come in order if no batch is offloaded.
ORDERED_KEY = b"ordered-"
ORDERED_KEYS = 20
UNREADABLE = "unreadable"
MAX_MESSAGE_BYTES = 1024 * 1024

#: Kind and share of the requests.
MIX = (("small", 62), ("ordered", 12), ("split", 6), ("staged", 10), ("staged and split", 2), ("ensemble", 8))


@dataclass(frozen=True)
class Outgoing:
    """A record of the requests topic.

    Attributes:
        kind: Part of the mix, or the kind of poison.
        code: Expected error; empty for a good request.
    """

    kind: str
    key: bytes
    value: bytes | None
    code: str = ""
    headers: list[tuple[str, str | bytes | None]] = field(default_factory=list)


def good_request(seed: int, number: int) -> Outgoing:
    """Makes a request that must be answered with values."""
    random = Random(seed * 1_000_003 + number)
    [kind] = random.choices([name for name, _ in MIX], [share for _, share in MIX])
    name = str(number)
    encoding = Encoding.JSON if random.random() < 0.05 else Encoding.PROTOBUF
    key = name.encode()
    if kind == "small":
        rows, version = random.choice((1, 1, 1, 2, 3)), random.choice(("", "", "1"))
        values = np.array([random.gauss(0, 1) for _ in range(rows * SMALL_INPUTS)], np.float32)
        x = Tensor.from_array("x", values.reshape(rows, SMALL_INPUTS))
        return _outgoing(kind, key, InferRequest("small", (x,), name, version, encoding=encoding))
    if kind == "ordered":
        # One encoding, one version, one row.
        key = ORDERED_KEY + b"%d" % random.randrange(ORDERED_KEYS)
        return _outgoing(kind, key, InferRequest("double", (_rows(number, 1),), name, "2"))
    rows = random.randint(33, 90) if "split" in kind else random.randint(1, 4)
    if "staged" in kind:
        found = np.array([random.randrange(8) for _ in range(rows)], np.int64)
        tensors = (_rows(number, rows), Tensor.from_array("i", found))
        return _outgoing(kind, key, InferRequest("steps", tensors, name, encoding=encoding))
    model = "halfway" if kind == "ensemble" else "double"
    return _outgoing(kind, key, InferRequest(model, (_rows(number, rows),), name, encoding=encoding))


def _rows(number: int, rows: int) -> Tensor:
    """Makes values that no other row of a run has."""
    return Tensor.from_array("x", number * 0.25 + np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) * 2**-9)


def _outgoing(kind: str, key: bytes, request: InferRequest) -> Outgoing:
    return Outgoing(kind, key, codec.encode_request(request))


def poison(name: str, kind: str) -> Outgoing:
    """Makes a request of a bad kind with an id; unreadable kinds have none."""
    value, code = _BAD[kind](name)
    return Outgoing(kind, name.encode(), value, code, [(EXPECTED_HEADER, code.encode())])


def _message(
    name: str,
    *,
    model: str = "double",
    version: str = "",
    tensor: str = "x",
    datatype: str = "FP32",
    shape: tuple[int, ...] = (1, 4),
    raw: bytes | None = bytes(16),
) -> ModelInferRequest:
    message = ModelInferRequest(id=name, model_name=model, model_version=version)
    message.inputs.add(name=tensor, datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def _bytes(name: str, **changes: object) -> bytes:
    return _message(name, **changes).SerializeToString()  # type: ignore[arg-type]


def _twice(name: str) -> bytes:
    message = _message(name)
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    return message.SerializeToString()


def _typed_and_raw(name: str) -> bytes:
    message = _message(name)
    message.inputs[0].contents.fp32_contents.extend([0.0] * 4)
    return message.SerializeToString()


def _with_output(name: str) -> bytes:
    message = _message(name)
    message.outputs.add(name="z")
    return message.SerializeToString()


def _parameter(name: str, key: str, value: str | int) -> bytes:
    message = _message(name)
    if isinstance(value, int):
        message.parameters[key].int64_param = value
    else:
        message.parameters[key].string_param = value
    return message.SerializeToString()


def _lookup(name: str, index: int) -> bytes:
    return _bytes(name, model="lookup", tensor="i", datatype="INT64", shape=(1,), raw=struct.pack("<q", index))


def _json(name: str, **changes: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4} | changes
    return json.dumps({"id": name, "model_name": "double", "inputs": [tensor]}).encode()


#: Kind of bad input -> its record and error code, by id.
_BAD: dict[str, Callable[[str], tuple[bytes | None, str]]] = {
    "unknown model": lambda name: (_bytes(name, model="triple"), "unknown_model"),
    "unknown version": lambda name: (_bytes(name, version="99"), "unknown_version"),
    "unknown input": lambda name: (_bytes(name, tensor="z"), "unknown_input"),
    "no input": lambda name: (ModelInferRequest(id=name, model_name="double").SerializeToString(), "missing_input"),
    "the same input twice": lambda name: (_twice(name), "unknown_input"),
    "another datatype": lambda name: (_bytes(name, datatype="FP64", raw=bytes(32)), "wrong_datatype"),
    "no such datatype": lambda name: (_bytes(name, datatype="FP31"), "wrong_datatype"),
    "wrong rank": lambda name: (_bytes(name, shape=(4,)), "wrong_shape"),
    "wrong axis": lambda name: (_bytes(name, shape=(1, 3), raw=bytes(12)), "wrong_shape"),
    "too little data": lambda name: (_bytes(name, raw=bytes(15)), "wrong_size"),
    "a shape of terabytes": lambda name: (_bytes(name, shape=(2**40, 4)), "wrong_size"),
    "a shape that overflows": lambda name: (_bytes(name, shape=(2**62, 2**62), raw=b""), "malformed_request"),
    "zero rows": lambda name: (_bytes(name, shape=(0, 4), raw=b""), "empty_batch"),
    "a negative axis": lambda name: (_bytes(name, shape=(-1, 4)), "malformed_request"),
    "raw and typed contents": lambda name: (_typed_and_raw(name), "malformed_request"),
    "unknown output": lambda name: (_with_output(name), "unknown_output"),
    "a priority that is a text": lambda name: (_parameter(name, "priority", "high"), "invalid_parameter"),
    "a negative time-out": lambda name: (_parameter(name, "timeout", -1), "invalid_parameter"),
    "over the size limit": lambda name: (_bytes(name, raw=bytes(MAX_MESSAGE_BYTES)), "request_too_large"),
    "a row that the model fails on": lambda name: (_lookup(name, 8), "inference_failed"),
    "JSON with texts for numbers": lambda name: (_json(name, data=["a"] * 4), "malformed_request"),
    "JSON with too few numbers": lambda name: (_json(name, data=[1.0]), "wrong_size"),
    "JSON with a number out of range": lambda name: (_json(name, data=[1e39] * 4), "malformed_request"),
    "a tombstone": lambda _: (None, UNREADABLE),
    "an empty record": lambda _: (b"", UNREADABLE),
    "noise": lambda _: (bytes(range(255, 0, -1)), UNREADABLE),
    "a message cut short": lambda _: (_bytes("cut-short")[:-1], UNREADABLE),
    "an id that is not UTF-8": lambda _: (_bytes("latin-one").replace(b"latin", b"lati\xe9"), UNREADABLE),
    "JSON without its end": lambda _: (b'{"id": "half", "inputs": [', UNREADABLE),
    "a pickle": lambda _: (b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", UNREADABLE),
}
POISON_KINDS = tuple(_BAD)
