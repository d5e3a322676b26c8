"""The JSON encoding: the protocol's REST messages.

Requests also have `model_name` and `model_version`. `data` is flat, or nested as `shape` says. `null` is read as NaN,
and so are `NaN`, `Infinity` and `-Infinity`, also as strings; NaN and infinity are written as `null`. Optional fields
may be `null`. An integer `id` is read as text. The last of repeated keys counts.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from anabranch.schemas.errors import MalformedRequest, UnreadableRequest, WrongDatatype, WrongSize
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.tensors import (
    BYTES,
    DATATYPES,
    FLOATS,
    NUMPY_DTYPES,
    Tensor,
    bytes_elements,
    check_count,
    check_shape,
    out_of_range,
    raw_from_elements,
    unknown_datatype,
    wrong_count,
)

_Parameters: TypeAlias = dict[str, bool | int | float | str | None] | None


class JsonTensor(msgspec.Struct):
    """A tensor."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class JsonOutput(msgspec.Struct):
    """A requested output."""

    name: str
    parameters: dict[str, Any] | None = None


class JsonRequest(msgspec.Struct):
    """A request."""

    inputs: list[JsonTensor]
    model_name: str | None = None
    model_version: str | None = None
    id: str | int | None = None
    parameters: _Parameters = None
    outputs: list[JsonOutput] | None = None


class _JsonId(msgspec.Struct):
    id: str | int | None = None


class _JsonResponse(msgspec.Struct):
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[JsonTensor] = []
    error: str | None = None
    code: str = ""


_request_decoder = msgspec.json.Decoder(JsonRequest)
_response_decoder = msgspec.json.Decoder(_JsonResponse)
_id_decoder = msgspec.json.Decoder(_JsonId)
_data_decoder = msgspec.json.Decoder(Any)
_encoder = msgspec.json.Encoder()
_FLAT_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    **{name: msgspec.json.Decoder(list[int]) for name in NUMPY_DTYPES},
    **{name: msgspec.json.Decoder(list[float]) for name in FLOATS},
    "BOOL": msgspec.json.Decoder(list[bool]),
    BYTES: msgspec.json.Decoder(list[str]),
}
#: Parameter of a tensor.
BINARY_SIZE = "binary_data_size"
#: Also matches strings, to skip them.
_NOT_FINITE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|-?\bInfinity\b|\bNaN\b', re.DOTALL)
_NAMED_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_find_object = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{\s*\"|\{").match


def sniff(message: bytes) -> bool:
    """Tell whether a message is a JSON object rather than protobuf.

    Protobuf, too, may start with a line feed (a tag) and `{` (a length), but not with a quote after these.
    """
    return _find_object(message) is not None


def find_id(message: bytes) -> str:
    """Find the id of an invalid request; empty without one."""
    try:
        return id_text(_id_decoder.decode(_quote_numbers(message.removeprefix(_BYTE_ORDER_MARK))).id)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""


def parse_request(message: bytes) -> JsonRequest:
    """Parse a request without its tensors, or raise a `RequestError`."""
    message = message.removeprefix(_BYTE_ORDER_MARK)
    try:
        parsed: JsonRequest = _decode(_request_decoder, message)
    except UnreadableRequest:
        quoted = _quote_numbers(message)
        if quoted == message:
            raise
        parsed = _decode(_request_decoder, quoted)
    for tensor in parsed.inputs:
        check_count(tensor.name, tensor.datatype, check_shape(tensor.name, tensor.shape), is_raw=is_binary(tensor))
    return parsed


def is_binary(tensor: JsonTensor) -> bool:
    """Tells binary data."""
    return tensor.data is msgspec.UNSET and BINARY_SIZE in (tensor.parameters or {})


def read_request(message: bytes) -> InferRequest:
    """Decode a request, or raise a `RequestError`."""
    parsed = parse_request(message)
    return InferRequest(
        model_name=parsed.model_name or "",
        model_version=parsed.model_version or "",
        id=id_text(parsed.id),
        parameters=read_parameters(parsed.parameters),
        inputs=tuple(read_tensor(tensor) for tensor in parsed.inputs),
        outputs=tuple(output.name for output in parsed.outputs or ()),
        encoding=Encoding.JSON,
    )


def read_response(message: bytes) -> InferResponse | ErrorResponse:
    """Decode a response, or raise a `RequestError`."""
    decoded: _JsonResponse = _decode(_response_decoder, message.removeprefix(_BYTE_ORDER_MARK))
    request_id, name, version = decoded.id or "", decoded.model_name or "", decoded.model_version or ""
    if decoded.error is not None:
        return ErrorResponse(request_id, decoded.code, decoded.error, name, version)
    outputs = tuple(read_tensor(tensor) for tensor in decoded.outputs)
    return InferResponse(name, version, request_id, outputs, read_parameters(decoded.parameters))


def write_request(request: InferRequest) -> bytes:
    """Encode a request, or raise `WrongDatatype` for BYTES without UTF-8."""
    fields: dict[str, Any] = {"id": request.id, "model_name": request.model_name}
    if request.model_version:
        fields["model_version"] = request.model_version
    if request.parameters:
        fields["parameters"] = dict(request.parameters)
    fields["inputs"] = [write_tensor(tensor) for tensor in request.inputs]
    if request.outputs:
        fields["outputs"] = [{"name": name} for name in request.outputs]
    return _encoder.encode(fields)


def write_response(response: InferResponse) -> bytes:
    """Encode a response; raise as `write_request`."""
    fields: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    fields["id"] = response.id
    if response.parameters:
        fields["parameters"] = dict(response.parameters)
    fields["outputs"] = [write_tensor(tensor) for tensor in response.outputs]
    return _encoder.encode(fields)


def write_error(error: ErrorResponse) -> bytes:
    """Encode a failure."""
    fields = {"id": error.id, "error": error.message, "code": error.code}
    if error.model_name:
        fields |= {"model_name": error.model_name, "model_version": error.model_version}
    return _encoder.encode(fields)


def _decode(decoder: msgspec.json.Decoder[Any], message: bytes) -> Any:
    try:
        return decoder.decode(message)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"the JSON message breaks the protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableRequest(f"the message is not JSON: {error}: send a JSON object or protobuf") from None


def _quote_numbers(message: bytes) -> bytes:
    """Make NaN and infinity strings."""
    if b"NaN" not in message and b"Infinity" not in message:
        return message
    return _NOT_FINITE.sub(lambda match: match[0] if match[0][:1] == b'"' else b'"%s"' % match[0], message)


def id_text(request_id: str | int | None) -> str:
    """Return the id as text."""
    return "" if request_id is None else str(request_id)


def read_parameters(parameters: _Parameters) -> dict[str, Parameter]:
    """Drop nulls."""
    return {name: value for name, value in (parameters or {}).items() if value is not None}


def read_tensor(tensor: JsonTensor) -> Tensor:
    """Decode a tensor, or raise a `RequestError`."""
    shape = check_shape(tensor.name, tensor.shape)
    if tensor.datatype not in DATATYPES:
        raise unknown_datatype(tensor.datatype, f"tensor {tensor.name!r}: ")
    if tensor.data is msgspec.UNSET or not isinstance(tensor.data, msgspec.Raw):
        hint = "send a list of elements"
        if is_binary(tensor):
            hint = "the binary extension needs HTTP headers, so send protobuf"
        raise MalformedRequest(f"tensor {tensor.name!r} has no data: {hint}")
    elements = _read_elements(tensor, shape, tensor.data)
    count = 1
    for axis in shape:
        count *= axis
    if len(elements) != count:
        raise wrong_count(tensor.name, len(elements), shape, count)
    if tensor.datatype == BYTES:
        return Tensor(tensor.name, BYTES, shape, raw_from_elements(elements))
    try:
        with np.errstate(over="raise"):
            data = np.array(elements, dtype=NUMPY_DTYPES[tensor.datatype]).tobytes()
    except (OverflowError, FloatingPointError):
        raise out_of_range(tensor.name, tensor.datatype) from None
    return Tensor(tensor.name, tensor.datatype, shape, data)


def _read_elements(tensor: JsonTensor, shape: tuple[int, ...], data: msgspec.Raw) -> list[Any]:
    decoder = _FLAT_DECODERS[tensor.datatype]
    try:
        return list(decoder.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # nested, with nulls, or wrong
    decoded = _decode(_data_decoder, data)
    if not isinstance(decoded, list) and (shape or decoded is None):
        raise MalformedRequest(f"tensor {tensor.name!r}: data is {type(decoded).__name__}, expected a list of elements")
    flat = decoded if isinstance(decoded, list) else [decoded]
    if any(isinstance(element, list) for element in flat):
        flat = _flatten(tensor.name, shape, flat)
    if tensor.datatype in FLOATS:
        flat = [float("nan") if element is None else _number(element) for element in flat]
    try:
        return list(msgspec.convert(flat, decoder.type))
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"tensor {tensor.name!r}: data is not {tensor.datatype}: {error}") from None


def _number(element: Any) -> Any:
    return _NAMED_NUMBERS.get(element, element) if isinstance(element, str) else element


def _flatten(name: str, shape: Sequence[int], nested: list[Any]) -> list[Any]:
    level: list[Any] = [nested]
    for axis in shape:
        if any(not isinstance(element, list) or len(element) != axis for element in level):
            raise WrongSize(
                f"tensor {name!r}: data is not nested as shape {list(shape)} says: nest it so, or send it flat"
            )
        level = [element for part in level for element in part]
    return level


def write_tensor(tensor: Tensor) -> dict[str, Any]:
    """Encode a tensor, or raise `WrongDatatype`."""
    data: list[Any]
    if tensor.datatype == BYTES:
        count = 1
        for axis in tensor.shape:
            count *= axis
        try:
            data = [element.decode() for element in bytes_elements(tensor.data, count)]
        except UnicodeDecodeError:
            raise WrongDatatype(f"tensor {tensor.name!r} has an element that is not UTF-8: send protobuf") from None
    else:
        data = np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype]).tolist()
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": data}
