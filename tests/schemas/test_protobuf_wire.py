"""The protobuf encoding equals that of the protobuf library, without copies of tensors."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.schemas.errors import AnabranchError, MalformedRequest, UnreadableRequest, WrongDatatype, WrongSize
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.schemas.tensors import BYTES, NUMPY_DTYPES, Tensor, bytes_elements
from anabranch.schemas.wire.protobuf_wire import (
    decode_id,
    has_field,
    open_envelope,
    read_request,
    read_response,
    write_error,
    write_field,
    write_request,
    write_response,
)
from tests.strategies import parameters, requests, tensors, texts

TYPED = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read(message: bytes) -> InferRequest:
    return read_request(message)


def put_parameters(target: Any, values: Any) -> None:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in values.items():
        setattr(target[name], fields[type(value)], value)


def as_protobuf(message: Any, tensors: Any, raw: Any, values: Any) -> bytes:
    """Encodes the same fields by the protobuf library."""
    put_parameters(message.parameters, values)
    for tensor, described in tensors:
        described.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        raw.append(bytes(tensor.data))
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


@pytest.mark.slow
@given(requests())
def test_protobuf_any_request_equals_the_library(request: InferRequest) -> None:
    message = ModelInferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
    for name in request.outputs:
        message.outputs.add(name=name)
    written = write_request(request)
    described = [(tensor, message.inputs) for tensor in request.inputs]
    assert written == as_protobuf(message, described, message.raw_input_contents, request.parameters)
    assert read(written) == request


@given(texts, texts, texts, st.lists(tensors(), min_size=1, max_size=3), parameters)
def test_protobuf_any_response_equals_the_library(
    name: str, version: str, request_id: str, outputs: list[Tensor], values: dict[str, bool | int | str | float]
) -> None:
    message = ModelInferResponse(model_name=name, model_version=version, id=request_id)
    response = InferResponse(name, version, request_id, tuple(outputs), values)
    written = write_response(response)
    described = [(tensor, message.outputs) for tensor in outputs]
    assert written == as_protobuf(message, described, message.raw_output_contents, values)
    assert read_response(written) == response


def test_protobuf_response_of_any_size_round_trips() -> None:
    for size in (0, 1, 127, 128, 16_383, 16_384, 2_100_000):
        output = Tensor("y", "UINT8", (size,), bytes(size))
        response = InferResponse("m", "1", "i" * (size % 300), (output, output))
        assert read_response(write_response(response)) == response


@given(texts, texts, texts)
def test_protobuf_any_error_round_trips(request_id: str, code: str, message: str) -> None:
    error = ErrorResponse(request_id, code, message, "m", "1")
    assert read_response(write_error(error)) == error


@given(requests())
def test_protobuf_raw_tensors_are_views(request: InferRequest) -> None:
    message = write_request(request)
    envelope = open_envelope(message)
    for tensor, (start, end) in zip(read_request(message).inputs, envelope.raw, strict=True):
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is message
        assert tensor.data == message[start:end]
        if tensor.datatype != BYTES and end > start:
            assert np.shares_memory(tensor.to_array(), np.frombuffer(message, np.uint8))


@given(st.data(), st.sampled_from(sorted(TYPED)), st.lists(st.integers(0, 3), max_size=3))
def test_protobuf_typed_contents_of_any_datatype_are_read(data: st.DataObject, datatype: str, shape: list[int]) -> None:
    count = math.prod(shape)
    message = ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    values: list[Any]
    if datatype == BYTES:
        values = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
    else:
        values = np.frombuffer(data.draw(st.binary(min_size=8 * count, max_size=8 * count)), "<u8").tolist()
        kind = NUMPY_DTYPES[datatype]
        values = np.array(values, "u8").view(np.uint8)[: kind.itemsize * count].view(kind).tolist()
    getattr(tensor.contents, TYPED[datatype]).extend(values)
    [read_back] = read(message.SerializeToString()).inputs
    if datatype == BYTES:
        assert bytes_elements(read_back.data, count) == values
    else:
        expected = np.array(values, NUMPY_DTYPES[datatype]).reshape(shape)
        np.testing.assert_array_equal(read_back.to_array(), expected)


def typed(datatype: str, field: str, values: list[Any], shape: tuple[int, ...] = (1,)) -> ModelInferRequest:
    message = ModelInferRequest(id="a")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return message


def both_kinds() -> ModelInferRequest:
    message = typed("FP32", "fp32_contents", [1.0])
    message.raw_input_contents.append(bytes(4))
    return message


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (typed("INT8", "int_contents", [128]), MalformedRequest),
        (typed("UINT16", "uint_contents", [65_536]), MalformedRequest),
        (typed("INT32", "int64_contents", [1]), MalformedRequest),
        (typed("FP16", "fp32_contents", [1.0]), WrongDatatype),
        (typed("BF16", "fp32_contents", [1.0]), WrongDatatype),
        (typed("", "fp32_contents", [1.0]), WrongDatatype),
        (typed("FP32", "fp32_contents", []), WrongSize),
        (typed("FP32", "fp32_contents", [1.0, 2.0]), WrongSize),
        (typed("BYTES", "bytes_contents", [b""], (2,)), WrongSize),
        (typed("FP32", "fp32_contents", [1.0], (-1,)), MalformedRequest),
        (typed("FP32", "fp32_contents", [1.0], (2**40, 2**40)), MalformedRequest),
        (both_kinds(), MalformedRequest),
        (ModelInferRequest(raw_input_contents=[b"1"]), MalformedRequest),
    ],
)
def test_protobuf_request_against_the_protocol_is_refused(
    message: ModelInferRequest, error: type[AnabranchError]
) -> None:
    with pytest.raises(error) as refused:
        read(message.SerializeToString())
    assert type(refused.value) is error


# ---- the hand-written reader against the library ------------------------------------------------------------------

_fields = st.one_of(
    st.tuples(st.sampled_from([1, 2, 5, 7, 7, 9, 15, 100, 2**29 - 1]), st.just(2), st.binary(max_size=200)),
    st.tuples(st.just(3), st.just(2), texts.map(str.encode)),
    st.tuples(st.integers(8, 300), st.just(0), st.integers(0, 2**64 - 1)),
    st.tuples(st.integers(8, 300), st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(st.integers(1, 300), st.just(5), st.binary(min_size=4, max_size=4)),
)


def varint(value: int, padding: int = 0) -> bytes:
    """Encodes a number, with `padding` more bytes than needed, which protobuf allows."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    for _ in range(padding):
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def wire(number: int, wire_type: int, value: int | bytes, padding: int) -> bytes:
    tag = varint(number << 3 | wire_type, min(padding, 1))
    if isinstance(value, int):
        return tag + varint(value)
    return tag + (varint(len(value), padding) if wire_type == 2 else b"") + value


@pytest.mark.slow
@settings(max_examples=400)
@given(st.lists(st.tuples(_fields, st.integers(0, 2)), max_size=8))
def test_open_envelope_any_fields_equals_the_library(fields: list[Any]) -> None:
    message = b"".join(wire(number, kind, value, padding) for (number, kind, value), padding in fields)
    reference = ModelInferRequest()
    envelope = open_envelope(message)
    try:
        reference.ParseFromString(message)
    except DecodeError:  # not UTF-8, or an input that is not a message
        with pytest.raises(AnabranchError):
            read_request(message)
        return
    assert [message[start:end] for start, end in envelope.raw] == list(reference.raw_input_contents)
    assert decode_id(message[slice(*envelope.id_at)]) == reference.id
    head = ModelInferRequest()
    head.ParseFromString(envelope.head)
    reference.ClearField("id")
    reference.ClearField("raw_input_contents")
    assert head.SerializeToString(deterministic=True) == reference.SerializeToString(deterministic=True)


def only_ours(message: bytes) -> None:
    """Reads a message, and lets only wire errors pass."""
    with suppress(AnabranchError):
        envelope = open_envelope(message)
        assert sum(end - start for start, end in (*envelope.raw, envelope.id_at)) + len(envelope.head) <= len(message)
        read_request(message)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_protobuf_random_bytes_raise_wire_errors_only(message: bytes) -> None:
    only_ours(message)


@pytest.mark.slow
@settings(max_examples=500)
@given(requests(), st.data())
def test_protobuf_damaged_request_raises_wire_errors_only(request: InferRequest, data: st.DataObject) -> None:
    message = bytearray(write_request(request))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255))
    only_ours(bytes(message))


@pytest.mark.slow
@given(requests().filter(lambda request: len(request.inputs[-1].data)))
def test_protobuf_cut_request_is_never_read_as_whole(request: InferRequest) -> None:
    message = write_request(request)
    for end in range(len(message)):
        only_ours(message[:end])
        with suppress(AnabranchError):
            assert read(message[:end]) != request


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a\xff\xff\xff\xff\x07",  # 2 GiB of raw contents, missing
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a" + b"\xff" * 1000,  # an endless number
        b"\x08",
        b"\x0d\0\0",
        b"\x09\0\0\0\0",
        b"\x02\x00",  # field 0
        b"\x7b",  # a group
        b"\x1a\x01\xff",  # an id that is not UTF-8
        b"\x0a\x01\xff",  # a model's name that is not UTF-8
        b"\x80\x04\x95\x08\0\0\0\0\0\0\0\x8c\x04exec\x94.",  # a pickle
        b"\xff" * 10_000,
    ],
)
def test_protobuf_request_without_a_message_is_unreadable(message: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        read(message)


@pytest.mark.parametrize("message", [b"", b"\xff\xff", b"\x2a\x03abc", b"\x32\xff\xff\xff\xff\x07"])
def test_protobuf_response_without_a_message_is_unreadable(message: bytes) -> None:
    if not message:
        assert read_response(message) == InferResponse("", "", "", ())
    else:
        with pytest.raises(UnreadableRequest):
            read_response(message)


@given(outputs=st.lists(tensors(), max_size=3), values=parameters, text=texts)
def test_has_field_tells_outputs_from_their_names(outputs: list[Tensor], values: Any, text: str) -> None:
    answer = write_response(InferResponse("m", "1", text, tuple(outputs), values))
    assert has_field(answer, ModelInferResponse.OUTPUTS_FIELD_NUMBER) == bool(outputs)
    assert not has_field(write_error(ErrorResponse(text, "code", "*" * 300)), ModelInferResponse.OUTPUTS_FIELD_NUMBER)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_write_field_equals_that_of_the_library(size: int) -> None:
    assert ModelInferRequest.FromString(write_field(1, b"x" * size)).model_name == "x" * size
