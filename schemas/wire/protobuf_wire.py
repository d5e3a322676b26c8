"""The protobuf encoding.

Only `open_envelope` parses raw tensors, as views; the head is equal for many requests, so its checks can be cached.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from anabranch.schemas.errors import MalformedRequest, UnreadableRequest, WrongDatatype
from anabranch.schemas.limits import CACHED_SIGNATURES, CACHED_VARINTS
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from anabranch.schemas.tensors import (
    BYTES,
    NUMPY_DTYPES,
    Buffer,
    Tensor,
    check_count,
    check_shape,
    out_of_range,
    raw_from_elements,
    unknown_datatype,
    wrong_count,
)

_SEND = "send a whole ModelInferRequest"
_ID_TAG = 3 << 3 | 2
_RAW_TAG = 7 << 3 | 2
_TAKEN_OUT = frozenset((_ID_TAG, _RAW_TAG))
_ID_START = bytes([_ID_TAG])
_RAW_START = bytes([_RAW_TAG])
_RAW_OUTPUT_START = bytes([6 << 3 | 2])
_CONTENTS_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def sniff(_message: bytes) -> bool:
    """Accept any message, since protobuf has no mark."""
    return True


class Envelope(msgspec.Struct, frozen=True):
    """The top level of a `ModelInferRequest`.

    Attributes:
        head: All other fields.
        id_at: Start and end of the id.
        raw: Start and end of each raw tensor.
    """

    head: bytes
    id_at: tuple[int, int]
    raw: tuple[tuple[int, int], ...]


def open_envelope(message: bytes) -> Envelope:  # noqa: C901, PLR0912 - one loop without calls, for speed
    """Parse the top level, or raise `UnreadableRequest`."""
    view = memoryview(message)
    end = len(message)
    kept: list[memoryview] = []
    raw: list[tuple[int, int]] = []
    id_at = (0, 0)
    position = kept_from = 0
    try:
        while position < end:
            start = position
            tag = message[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(message, start)
            wire_type = tag & 7
            if wire_type == 2:
                length = message[position]
                position += 1
                if length >= 0x80:
                    length, position = _varint(message, position - 1)
                field_end = position + length
                if field_end > end:
                    raise UnreadableRequest(f"field {tag >> 3} has {end - position} bytes, expected {length}: {_SEND}")
                if tag in _TAKEN_OUT:
                    if kept_from != start:
                        kept.append(view[kept_from:start])
                    if tag == _RAW_TAG:
                        raw.append((position, field_end))
                    else:
                        id_at = (position, field_end)
                    kept_from = field_end
                position = field_end
            elif wire_type == 0:
                _, position = _varint(message, position)
            elif wire_type == 1:
                position += 8
            elif wire_type == 5:
                position += 4
            else:
                raise UnreadableRequest(f"unknown wire type {wire_type} at byte {start}: {_SEND}")
            if tag < 8:
                raise UnreadableRequest(f"field number 0 at byte {start}: {_SEND}")
    except IndexError:
        raise UnreadableRequest(f"the message of {end} bytes ends inside a field: {_SEND}") from None
    if position != end:
        raise UnreadableRequest(f"the message of {end} bytes ends inside a field: {_SEND}")
    if kept_from != end:
        kept.append(view[kept_from:end])
    return Envelope(b"".join(kept), id_at, tuple(raw))


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise UnreadableRequest(f"a varint has more than 10 bytes: {_SEND}")


def decode_id(request_id: bytes) -> str:
    """Decode an id, or raise `UnreadableRequest`."""
    try:
        return request_id.decode()
    except UnicodeDecodeError:
        raise UnreadableRequest(f"the id {request_id[:40]!r} is not UTF-8: send a UTF-8 id") from None


def write_id(request_id: bytes) -> bytes:
    """Encode an id; appended to a message, it replaces the earlier one."""
    return write_field(3, request_id)


def write_field(number: int, value: bytes) -> bytes:
    """Encode a field below 16."""
    return b"".join((bytes([number << 3 | 2]), _write_varint(len(value)), value))


def has_field(message: bytes, number: int) -> bool:
    """Find a field among fields of bytes."""
    position = 0
    while position < len(message) and message[position] & 7 == 2:
        if message[position] >> 3 == number:
            return True
        length, position = _varint(message, position + 1)
        position += length
    return False


def find_id(message: bytes) -> str:
    """Find the id of an invalid request, or raise `UnreadableRequest`."""
    return decode_id(message[slice(*open_envelope(message).id_at)])


def read_request(message_bytes: bytes) -> InferRequest:
    """Decode a request with views of raw tensors, or raise a `RequestError`."""
    envelope = open_envelope(message_bytes)
    request_id = decode_id(message_bytes[slice(*envelope.id_at)])
    message = ModelInferRequest()
    try:
        message.ParseFromString(envelope.head)
    except DecodeError:
        raise UnreadableRequest(f"a field has invalid protobuf or is not UTF-8: {_SEND}") from None
    if envelope.raw and len(envelope.raw) != len(message.inputs):
        raise MalformedRequest(_raw_count("input", len(envelope.raw), len(message.inputs)))
    view = memoryview(message_bytes)
    inputs = []
    for index, tensor in enumerate(message.inputs):
        shape = check_shape(tensor.name, tensor.shape)
        check_count(tensor.name, tensor.datatype, shape, is_raw=bool(envelope.raw))
        data: Buffer
        if envelope.raw:
            if tensor.HasField("contents"):
                raise MalformedRequest(f"input {tensor.name!r} has contents and raw_input_contents: send one of them")
            data = view[slice(*envelope.raw[index])]
        else:
            data = _raw_from_contents(tensor.name, tensor.datatype, shape, tensor.contents)
        inputs.append(Tensor(tensor.name, tensor.datatype, shape, data))
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=request_id,
        parameters=read_parameters(message.parameters),
        inputs=tuple(inputs),
        outputs=tuple(output.name for output in message.outputs),
    )


def write_request(request: InferRequest) -> bytes:
    """Encode a request with raw contents."""
    message = ModelInferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
    _write_parameters(message.parameters, request.parameters)
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        message.outputs.add(name=name)
    parts: list[Buffer] = [message.SerializeToString(deterministic=True)]
    for tensor in request.inputs:
        parts += (_RAW_START, _write_varint(len(tensor.data)), tensor.data)
    return b"".join(parts)


class ResponseFrame(msgspec.Struct, frozen=True):
    """Encoded fields before id and parameters, and after them, of similar responses."""

    before: bytes
    after: bytes

    def fill(self, request_id: bytes, raw: Iterable[Buffer], parameters: bytes = b"") -> bytes:
        """Encode a response; copy tensors once."""
        parts: list[Buffer] = [self.before]
        if request_id:
            parts += (_ID_START, _write_varint(len(request_id)), request_id)
        parts += (parameters, self.after)
        for data in raw:
            parts += (_RAW_OUTPUT_START, _write_varint(len(data)), data)
        return b"".join(parts)


@lru_cache(maxsize=CACHED_SIGNATURES)
def response_frame(
    model_name: str, model_version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> ResponseFrame:
    """Make a frame; outputs are name, datatype and shape."""
    before = ModelInferResponse(model_name=model_name, model_version=model_version)
    after = ModelInferResponse()
    for name, datatype, shape in outputs:
        after.outputs.add(name=name, datatype=datatype, shape=shape)
    return ResponseFrame(before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True))


def write_response(response: InferResponse) -> bytes:
    """Encode a response with raw contents."""
    described = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs])
    frame = response_frame(response.model_name, response.model_version, described)
    parameters = b""
    if response.parameters:
        message = ModelInferResponse()
        _write_parameters(message.parameters, response.parameters)
        parameters = message.SerializeToString(deterministic=True)
    return frame.fill(response.id.encode(), [tensor.data for tensor in response.outputs], parameters)


def write_error(error: ErrorResponse) -> bytes:
    """Encode a failure as parameters `error_code` and `error_message`."""
    message = ModelInferResponse(model_name=error.model_name, model_version=error.model_version, id=error.id)
    _write_parameters(message.parameters, {"error_code": error.code, "error_message": error.message})
    return message.SerializeToString(deterministic=True)


def read_response(message_bytes: bytes) -> InferResponse | ErrorResponse:
    """Decode a response, or raise a `RequestError`."""
    message = ModelInferResponse()
    try:
        message.ParseFromString(message_bytes)
    except DecodeError:
        raise UnreadableRequest("the message is not a ModelInferResponse: read the response topic") from None
    parameters = read_parameters(message.parameters)
    if "error_code" in parameters and not message.outputs:
        return ErrorResponse(
            id=message.id,
            code=str(parameters["error_code"]),
            message=str(parameters.get("error_message", "")),
            model_name=message.model_name,
            model_version=message.model_version,
        )
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise MalformedRequest(_raw_count("output", len(raw), len(message.outputs)))
    outputs = []
    for index, tensor in enumerate(message.outputs):
        shape = check_shape(tensor.name, tensor.shape)
        data = raw[index] if raw else _raw_from_contents(tensor.name, tensor.datatype, shape, tensor.contents)
        outputs.append(Tensor(tensor.name, tensor.datatype, shape, data))
    return InferResponse(message.model_name, message.model_version, message.id, tuple(outputs), parameters)


@lru_cache(maxsize=CACHED_VARINTS)
def _write_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _raw_count(what: str, found: int, expected: int) -> str:
    return f"the message has {found} raw_{what}_contents, expected {expected}: send one for each {what}"


def _raw_from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: InferTensorContents) -> bytes:
    try:
        field = _CONTENTS_FIELDS[datatype]
    except KeyError:
        if datatype in NUMPY_DTYPES:
            raise WrongDatatype(f"tensor {name!r}: {datatype} has no typed contents: send raw contents") from None
        raise unknown_datatype(datatype, f"tensor {name!r}: ") from None
    strangers = [descriptor.name for descriptor, _ in contents.ListFields() if descriptor.name != field]
    if strangers:
        raise MalformedRequest(f"tensor {name!r} has {', '.join(strangers)}, expected {field}: send {datatype} in it")
    values = getattr(contents, field)
    count = 1
    for axis in shape:
        count *= axis
    if len(values) != count:
        raise wrong_count(name, len(values), shape, count)
    if datatype == BYTES:
        return raw_from_elements(values)
    try:
        return np.array(values, dtype=NUMPY_DTYPES[datatype]).tobytes()
    except OverflowError:
        raise out_of_range(name, datatype) from None


def read_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Parameter]:
    """Decode parameters."""
    read: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            read[name] = getattr(parameter, choice)
    return read


def _write_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        _SETTERS[type(value)](target[name], value)


def _set(field: str) -> Callable[[InferParameter, Parameter], None]:
    return lambda parameter, value: setattr(parameter, field, value)


_SETTERS: dict[type, Callable[[InferParameter, Parameter], None]] = {
    bool: _set("bool_param"),
    int: _set("int64_param"),
    str: _set("string_param"),
    float: _set("double_param"),
}
