"""Bad requests of every known kind, and their error codes."""

import struct
from typing import Any

from anabranch.schemas.messages import Encoding, InferRequest
from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.tensors import Tensor, raw_from_elements
from anabranch.schemas.wire import codec
from tests.core.models import MAX_MESSAGE_BYTES, request, tensors_of

X, T = tensors_of("rows", [1.0, 2.0])


def encoded(*inputs: Tensor, encoding: Encoding = Encoding.PROTOBUF, **fields: Any) -> bytes:
    return codec.encode_request(InferRequest("rows", inputs or (X, T), "a", encoding=encoding, **fields))


def _typed(datatype: str, field: str, values: list[Any], shape: tuple[int, ...]) -> bytes:
    message = ModelInferRequest(model_name="whole", id="a")
    described = message.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(described.contents, field).extend(values)
    return message.SerializeToString()


def json(text: str) -> bytes:
    return f'{{"id": "a", "model_name": "whole", {text}}}'.encode()


def _json_data(shape: str, data: str) -> bytes:
    return json(f'"inputs": [{{"name": "x", "shape": {shape}, "datatype": "FP32", "data": {data}}}]')


#: Kind of bad input -> message and code; all but unreadable ones keep their id.
BAD: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "unreadable"),
    "empty": (b"", "unreadable"),
    "zeros": (b"\0" * 50, "unreadable"),
    "text": (b"hello, world", "unreadable"),
    "truncated": (encoded()[:-1], "unreadable"),
    "truncated head": (encoded()[:8], "unreadable"),
    "a length of 2 GiB": (b"\x3a\xff\xff\xff\xff\x07" + bytes(10), "unreadable"),
    "id is not UTF-8": (encoded().replace(b"\x1a\x01a", b"\x1a\x01\xff"), "unreadable"),
    "name is not UTF-8": (encoded().replace(b"rows", b"ro\xffs"), "unreadable"),
    "JSON cut off": (b'{"id": "a", "inputs": [', "unreadable"),
    "JSON of 100,000 levels": (b'{"a":' * 100_000, "unreadable"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "unreadable"),
    "pickle": (b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02ls.", "unreadable"),
    "unknown model": (request("rows").replace(b"rows", b"nobd"), "unknown_model"),
    "no model": (encoded().replace(b"\x0a\x04rows", b""), "unknown_model"),
    "unknown version": (encoded(model_version="3"), "unknown_version"),
    "unknown input": (encoded(X, T, Tensor("z", "FP32", (2,), bytes(8))), "unknown_input"),
    "the same input twice": (encoded(X, X), "unknown_input"),
    "an input without a name": (encoded(X, Tensor("", "BYTES", (2,), bytes(8))), "unknown_input"),
    "an input's name of 500 kB": (encoded(X, Tensor("n" * 500_000, "FP32", (2,), bytes(8))), "unknown_input"),
    "missing input": (encoded(X), "missing_input"),
    "unknown output": (encoded(outputs=("y", "z")), "unknown_output"),
    "the same output 50,000 times": (encoded(outputs=("y",) * 50_000), "unknown_output"),
    "another datatype": (encoded(Tensor("x", "FP64", (2, 2), bytes(32)), T), "wrong_datatype"),
    "no such datatype": (encoded(Tensor("x", "FP31", (2, 2), bytes(16)), T), "wrong_datatype"),
    "FP16 as typed contents": (_typed("FP16", "fp32_contents", [1.0], (1,)), "wrong_datatype"),
    "wrong rank": (encoded(Tensor("x", "FP32", (4,), bytes(16)), T), "wrong_shape"),
    "no axis": (encoded(Tensor("x", "FP32", (), bytes(4)), T), "wrong_shape"),
    "wrong axis": (encoded(Tensor("x", "FP32", (2, 3), bytes(24)), T), "wrong_shape"),
    "inputs of different rows": (encoded(X, Tensor("t", "BYTES", (3,), bytes(12))), "wrong_shape"),
    "negative axis": (encoded(Tensor("x", "FP32", (-2, 2), bytes(16)), T), "malformed_request"),
    "65 axes": (encoded(Tensor("x", "FP32", (1,) * 65, bytes(4)), T), "malformed_request"),
    "shape that overflows": (encoded(Tensor("x", "FP32", (2**62, 2**62), b""), T), "malformed_request"),
    "empty, but too large for numpy": (encoded(Tensor("x", "FP32", (0, 2**62), b""), T), "malformed_request"),
    "huge declared rows": (encoded(Tensor("x", "FP32", (2**40, 2), bytes(16)), T), "wrong_shape"),
    "huge declared size": (request("whole").replace(b"\x1a\x01\x01", b"\x1a\x01\x7f"), "wrong_size"),
    "data too short": (encoded(Tensor("x", "FP32", (2, 2), bytes(15)), T), "wrong_size"),
    "data too long": (encoded(Tensor("x", "FP32", (2, 2), bytes(17)), T), "wrong_size"),
    "BYTES length too long": (encoded(X, Tensor("t", "BYTES", (2,), struct.pack("<I", 99) + bytes(8))), "wrong_size"),
    "BYTES element cut short": (encoded(X, Tensor("t", "BYTES", (2,), bytes(7))), "wrong_size"),
    "too many BYTES elements": (encoded(X, Tensor("t", "BYTES", (2,), raw_from_elements([b"a"] * 3))), "wrong_size"),
    "typed contents too short": (_typed("FP32", "fp32_contents", [1.0], (2,)), "wrong_size"),
    "typed contents of another type": (_typed("FP32", "int64_contents", [1], (1,)), "malformed_request"),
    "one raw tensor too few": (encoded()[: -len(T.data) - 2], "malformed_request"),
    "one raw tensor too many": (encoded() + b"\x3a\x00", "malformed_request"),
    "zero rows": (encoded(Tensor("x", "FP32", (0, 2), b""), Tensor("t", "BYTES", (0,), b"")), "empty_batch"),
    "priority of the wrong type": (encoded(parameters={"priority": "high"}), "invalid_parameter"),
    "priority is a boolean": (encoded(parameters={"priority": True}), "invalid_parameter"),
    "negative priority": (encoded(parameters={"priority": -1}), "invalid_parameter"),
    "huge priority": (encoded(parameters={"priority": 2**31}), "invalid_parameter"),
    "negative timeout": (encoded(parameters={"timeout": -1}), "invalid_parameter"),
    "timeout is a fraction": (encoded(parameters={"timeout": 0.5}), "invalid_parameter"),
    "partial is a number": (encoded(parameters={"partial": 1}), "invalid_parameter"),
    "explain is a text": (encoded(parameters={"explain": "yes"}), "invalid_parameter"),
    "over the size limit": (request(values=[1.0] * (MAX_MESSAGE_BYTES // 8)), "request_too_large"),
    "JSON without inputs": (json('"parameters": {}'), "malformed_request"),
    "JSON data of the wrong type": (_json_data('[1]', '["a"]'), "malformed_request"),
    "JSON data out of range": (_json_data('[1]', '[1e39]'), "malformed_request"),
    "ragged JSON data": (_json_data('[2, 2]', '[[1], [2, 3, 4]]'), "wrong_size"),
    "JSON timeout of 400 digits": (json(f'"inputs": [], "parameters": {{"timeout": {"9" * 400}}}'), "missing_input"),
}  # fmt: skip
