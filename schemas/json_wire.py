"""Requests and answers in the protocol's REST JSON, for people and for clients without protobuf.

Kafka has no URL to hold the model's name, so a request may carry `model_name` and `model_version` beside the REST
fields, as the answer does. `data` may be flat or nested. JSON has no NaN and no infinity: `null` is read as NaN, and
both are written as `null`.
"""

from typing import Any

import msgspec
import numpy as np

from schemas.errors import MalformedRequest, UnreadableRequest, WrongDatatype, WrongSize
from schemas.messages import ErrorResponse, Form, InferRequest, InferResponse
from schemas.tensors import (
    BYTES,
    DATATYPES,
    FLOATS,
    NUMPY_DTYPES,
    Tensor,
    bytes_elements,
    check_shape,
    raw_from_elements,
)


class _JsonTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _JsonOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _JsonRequest(msgspec.Struct):
    inputs: list[_JsonTensor]
    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, bool | int | float | str] = {}
    outputs: list[_JsonOutput] = []


class _JsonId(msgspec.Struct):
    id: str


class _JsonResponse(msgspec.Struct):
    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, bool | int | float | str] = {}
    outputs: list[_JsonTensor] = []
    error: str | None = None
    code: str = ""


_request_decoder = msgspec.json.Decoder(_JsonRequest)
_response_decoder = msgspec.json.Decoder(_JsonResponse)
_id_decoder = msgspec.json.Decoder(_JsonId)
_encoder = msgspec.json.Encoder()
_FLAT_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    **{name: msgspec.json.Decoder(list[int]) for name in NUMPY_DTYPES},
    **{name: msgspec.json.Decoder(list[float]) for name in FLOATS},
    "BOOL": msgspec.json.Decoder(list[bool]),
    BYTES: msgspec.json.Decoder(list[str]),
}
_BINARY_EXTENSION = "binary_data_size"


def find_id(message: bytes) -> str:
    """The id of a request that cannot be read otherwise, so that its sender hears of it; empty where there is none."""
    try:
        return _id_decoder.decode(message).id
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""


def read_request(message: bytes) -> InferRequest:
    """The request in a JSON message.

    Raises:
        UnreadableRequest: The bytes are no JSON object.
        MalformedRequest: A field is missing or of the wrong type; data of the wrong type, ragged or out of range.
        WrongDatatype: A datatype that the protocol does not have.
        WrongSize: Data that disagrees with the shape.
    """
    decoded: _JsonRequest = _decode(_request_decoder, message)
    return InferRequest(
        model_name=decoded.model_name,
        model_version=decoded.model_version,
        id=decoded.id,
        parameters=decoded.parameters,
        inputs=tuple(_read_tensor(tensor) for tensor in decoded.inputs),
        outputs=tuple(output.name for output in decoded.outputs),
        form=Form.JSON,
    )


def read_response(message: bytes) -> InferResponse | ErrorResponse:
    """An answer, or the failure that stands in its place.

    Raises:
        UnreadableRequest, MalformedRequest: As `read_request`.
    """
    decoded: _JsonResponse = _decode(_response_decoder, message)
    if decoded.error is not None:
        return ErrorResponse(decoded.id, decoded.code, decoded.error, decoded.model_name, decoded.model_version)
    outputs = tuple(_read_tensor(tensor) for tensor in decoded.outputs)
    return InferResponse(decoded.model_name, decoded.model_version, decoded.id, outputs, decoded.parameters)


def write_request(request: InferRequest) -> bytes:
    """A request as JSON, with flat data."""
    fields: dict[str, Any] = {"id": request.id, "model_name": request.model_name}
    if request.model_version:
        fields["model_version"] = request.model_version
    if request.parameters:
        fields["parameters"] = dict(request.parameters)
    fields["inputs"] = [_write_tensor(tensor) for tensor in request.inputs]
    if request.outputs:
        fields["outputs"] = [{"name": name} for name in request.outputs]
    return _encoder.encode(fields)


def write_response(response: InferResponse) -> bytes:
    """An answer as JSON, with flat data."""
    fields: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    fields["id"] = response.id
    if response.parameters:
        fields["parameters"] = dict(response.parameters)
    fields["outputs"] = [_write_tensor(tensor) for tensor in response.outputs]
    return _encoder.encode(fields)


def write_error(error: ErrorResponse) -> bytes:
    """A failure as `{"id", "error", "code"}`, with the model's name and version where they are known."""
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
        raise UnreadableRequest(f"not a JSON message: {error}") from None


def _read_tensor(tensor: _JsonTensor) -> Tensor:
    shape = check_shape(tensor.name, tensor.shape)
    if tensor.datatype not in DATATYPES:
        raise WrongDatatype(f"tensor {tensor.name!r}: unknown datatype {tensor.datatype!r}")
    if tensor.data is msgspec.UNSET or not isinstance(tensor.data, msgspec.Raw):
        hint = ": the binary extension needs HTTP headers, so send protobuf" if _has_binary(tensor.parameters) else ""
        raise MalformedRequest(f"tensor {tensor.name!r} has no data{hint}")
    elements = _read_elements(tensor, tensor.data)
    count = 1
    for axis in shape:
        count *= axis
    if len(elements) != count:
        raise WrongSize(f"tensor {tensor.name!r}: {len(elements)} elements, but its shape {list(shape)} has {count}")
    if tensor.datatype == BYTES:
        return Tensor(tensor.name, BYTES, shape, raw_from_elements(elements))
    try:
        data = np.array(elements, dtype=NUMPY_DTYPES[tensor.datatype]).tobytes()
    except OverflowError:
        raise MalformedRequest(f"tensor {tensor.name!r}: an element is out of the range of {tensor.datatype}") from None
    return Tensor(tensor.name, tensor.datatype, shape, data)


def _has_binary(parameters: dict[str, Any]) -> bool:
    return _BINARY_EXTENSION in parameters


def _read_elements(tensor: _JsonTensor, data: msgspec.Raw) -> list[Any]:
    decoder = _FLAT_DECODERS[tensor.datatype]
    try:
        return list(decoder.decode(data))
    except msgspec.ValidationError:
        pass  # nested, holding nulls, or wrong: look at every element
    flat: list[Any] = []
    _flatten(msgspec.json.decode(data), flat)
    if tensor.datatype in FLOATS:
        flat = [float("nan") if element is None else element for element in flat]
    try:
        return list(msgspec.convert(flat, decoder.type))
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"tensor {tensor.name!r}: data is not {tensor.datatype}: {error}") from None


def _flatten(value: Any, flat: list[Any]) -> None:
    if isinstance(value, list):
        for element in value:
            _flatten(element, flat)
    else:
        flat.append(value)


def _write_tensor(tensor: Tensor) -> dict[str, Any]:
    data: list[Any]
    if tensor.datatype == BYTES:
        count = 1
        for axis in tensor.shape:
            count *= axis
        data = [element.decode(errors="replace") for element in bytes_elements(tensor.data, count)]
    else:
        data = np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype]).tolist()
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": data}
