"""Bodies of HTTP requests and answers: JSON, and binary tensors after it.

JSON of `Inference-Header-Content-Length` bytes | data of each tensor with `binary_data_size`
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from anabranch.schemas.errors import (
    AnabranchError,
    InvalidParameter,
    MalformedRequest,
    RequestTooLarge,
    UnreadableRequest,
    WrongSize,
    error_with_code,
)
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.tensors import Tensor, check_shape, raw_size_bytes
from anabranch.schemas.wire import json_wire, protobuf_wire
from anabranch.schemas.wire.json_wire import BINARY_SIZE

#: Sizes in bytes of the JSON before binary tensors.
LENGTH_HEADER = "inference-header-content-length"
#: Of zlib, to try in turn: some senders of `deflate` leave zlib's head out.
_WINDOW_BITS = {"gzip": (31,), "deflate": (47, -15)}
_LEAST_COMPRESSED_BYTES = 1024
_encoder = msgspec.json.Encoder()


class HttpRequest(msgspec.Struct, frozen=True):
    """A decoded request and the form of its answer.

    Attributes:
        binary: Outputs to answer in binary; None for all.
        names: Requested name of each output that is called otherwise by the model.
    """

    request: InferRequest
    binary: frozenset[str] | None = frozenset()
    names: Mapping[str, str] = {}


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body, or raise a `RequestError`; `identity` and nothing are left alone."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnreadableRequest(f"unknown Content-Encoding {encoding!r}; available: gzip, deflate")
    problem: zlib.error | None = None
    for bits in _WINDOW_BITS[encoding]:
        stream = zlib.decompressobj(bits)
        try:
            inflated = stream.decompress(body, max_bytes + 1)
        except zlib.error as error:
            problem = error
            continue
        if len(inflated) > max_bytes:
            raise RequestTooLarge(f"the body has over {max_bytes} bytes when it is decompressed: send fewer rows")
        if not stream.eof:
            raise UnreadableRequest("the compressed body is cut short: send all of it")
        return inflated
    raise UnreadableRequest(f"the body is not {encoding}: {problem}")


def deflate(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Compress an answer if its asker accepts that; return it with the encoding, or an empty one."""
    encodings = {part.split(";")[0].strip() for part in accepted.lower().split(",") if "q=0" not in part}
    encoding = next((name for name in ("gzip", "deflate") if name in encodings), "")
    if not encoding or len(body) < _LEAST_COMPRESSED_BYTES:
        return body, ""
    stream = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
    return stream.compress(body) + stream.flush(), encoding


def split_requests(body: bytes) -> list[bytes]:
    """Split a body into its JSON requests: one, or one on each line."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.MsgspecError:
        return [line for line in body.splitlines() if line.strip()] or [body]
    return [body]


def in_json(asked: HttpRequest) -> HttpRequest:
    """Return the request with no output in binary."""
    return msgspec.structs.replace(asked, binary=frozenset())


def read_request(body: bytes, header_length: str | None, model: str, version: str) -> HttpRequest:
    """Decode the body of a request, or raise a `RequestError`.

    Args:
        header_length: Value of `Inference-Header-Content-Length`.
        model, version: From the path.
    """
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length[:12]) > size:
            raise MalformedRequest(
                f"Inference-Header-Content-Length is {header_length[:40]!r}, expected the size of the JSON, at most "
                f"{size}: send it in decimal"
            )
        size = int(header_length[:12])
    parsed = json_wire.parse_request(body[:size])
    view, at, inputs = memoryview(body), size, []
    for tensor in parsed.inputs:
        if not json_wire.is_binary(tensor):
            inputs.append(json_wire.read_tensor(tensor))
            continue
        tensor_size = (tensor.parameters or {})[BINARY_SIZE]
        if type(tensor_size) is not int or not 0 <= tensor_size <= len(body) - at:
            raise WrongSize(
                f"tensor {tensor.name!r} has binary_data_size {tensor_size!r}, and {len(body) - at} bytes are left: "
                "send the size of its data"
            )
        shape = check_shape(tensor.name, tensor.shape)
        expected = raw_size_bytes(tensor.datatype, shape)
        if expected is not None and expected != tensor_size:
            raise WrongSize(f"tensor {tensor.name!r} has {tensor_size} bytes, expected {expected} for its shape")
        inputs.append(Tensor(tensor.name, tensor.datatype, shape, view[at : at + tensor_size]))
        at += tensor_size
    if at != len(body):
        raise WrongSize(f"{len(body) - at} bytes follow the last tensor: state binary_data_size for each binary input")
    parameters = json_wire.read_parameters(parsed.parameters)
    all_binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    outputs = parsed.outputs or ()
    binary = {
        output.name
        for output in outputs
        if _flag((output.parameters or {}).get("binary_data", all_binary), "binary_data")
    }
    request = InferRequest(
        model,
        tuple(inputs),
        json_wire.id_text(parsed.id),
        version,
        parameters,
        tuple(output.name for output in outputs),
    )
    return HttpRequest(request, None if all_binary and not outputs else frozenset(binary))


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter(f"parameter {name} is {value!r}, expected a boolean: send true or false")
    return value


def with_names_of(asked: HttpRequest, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> HttpRequest:
    """Return the request with the model's names for those that differ in case only, as Flink SQL writes them."""
    known_inputs = {spec.name for spec in inputs}
    if all(tensor.name in known_inputs for tensor in asked.request.inputs) and all(
        name in {spec.name for spec in outputs} for name in asked.request.outputs
    ):
        return asked
    of_input, of_output = _by_folded_name(inputs), _by_folded_name(outputs)
    renamed = tuple(
        tensor
        if tensor.name in known_inputs
        else Tensor(of_input.get(tensor.name.casefold(), tensor.name), tensor.datatype, tensor.shape, tensor.data)
        for tensor in asked.request.inputs
    )
    known_outputs = {spec.name for spec in outputs}
    chosen = {
        name: name if name in known_outputs else of_output.get(name.casefold(), name) for name in asked.request.outputs
    }
    request = msgspec.structs.replace(asked.request, inputs=renamed, outputs=tuple(chosen.values()))
    names = {own: name for name, own in chosen.items() if own != name}
    return msgspec.structs.replace(asked, request=request, names=names)


def _by_folded_name(specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for spec in specs:
        folded[spec.name.casefold()] = "" if spec.name.casefold() in folded else spec.name
    return {name: own for name, own in folded.items() if own}


def write_request(request: InferRequest, parameters: Mapping[str, Parameter]) -> bytes:
    """Encode a request for the job, without id, and with further parameters."""
    merged = msgspec.structs.replace(request, id="", parameters={**request.parameters, **parameters})
    try:
        return protobuf_wire.write_request(merged)
    except (ValueError, TypeError) as error:
        raise InvalidParameter(f"the request cannot be written: {error}") from None


def read_answer(answer: bytes) -> InferResponse:
    """Decode the answer of the job, or raise its error."""
    response = protobuf_wire.read_response(answer)
    if isinstance(response, ErrorResponse):
        raise error_with_code(response.code, response.message)
    return response


def write_answer(response: InferResponse, asked: HttpRequest) -> tuple[bytes, int | None]:
    """Encode an answer; return it with the size of its JSON if binary tensors follow."""
    fields: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if asked.request.id:
        fields["id"] = asked.request.id
    if response.parameters:
        fields["parameters"] = dict(response.parameters)
    tensors, binary = [], []
    for output in response.outputs:
        name = asked.names.get(output.name, output.name)
        if asked.binary is None or name in asked.binary:
            tensors.append(
                {
                    "name": name,
                    "shape": output.shape,
                    "datatype": output.datatype,
                    "parameters": {BINARY_SIZE: len(output.data)},
                }
            )
            binary.append(output.data)
        else:
            tensors.append({**json_wire.write_tensor(output), "name": name})
    head = _encoder.encode({**fields, "outputs": tensors})
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def write_error(error: AnabranchError, request_id: str = "") -> bytes:
    """Encode an error."""
    fields = {"error": error.message, "code": error.code}
    return _encoder.encode({**fields, "id": request_id} if request_id else fields)
