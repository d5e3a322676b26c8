"""The table of encodings; each is a module with the functions of `Codec`."""

from typing import Protocol

from anabranch.schemas.errors import AnabranchError, UnreadableRequest
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.wire import json_wire, protobuf_wire


class Codec(Protocol):
    """The functions of an encoding, which raise a `RequestError`."""

    def sniff(self, message: bytes, /) -> bool:
        """Tell whether a message is in this encoding."""

    def read_request(self, message: bytes, /) -> InferRequest:
        """Decode a request."""

    def write_request(self, request: InferRequest, /) -> bytes:
        """Encode a request."""

    def read_response(self, message: bytes, /) -> InferResponse | ErrorResponse:
        """Decode a response."""

    def write_response(self, response: InferResponse, /) -> bytes:
        """Encode a response."""

    def write_error(self, error: ErrorResponse, /) -> bytes:
        """Encode a failure."""

    def find_id(self, message: bytes, /) -> str:
        """Find the id of an invalid request; empty without one."""


#: In the order of trial; protobuf takes the rest.
ENCODINGS: dict[Encoding, Codec] = {Encoding.JSON: json_wire, Encoding.PROTOBUF: protobuf_wire}


def check_encodings(encodings: dict[Encoding, Codec]) -> None:
    """Raise NotImplementedError if the table is incomplete."""
    missing = [encoding.name for encoding in Encoding if encoding not in encodings]
    if missing:
        raise NotImplementedError(f"no codec for {', '.join(missing)}: add it to schemas.wire.codec.ENCODINGS")
    if not list(encodings.values())[-1].sniff(b""):
        raise NotImplementedError(
            "the last codec must take any message: put protobuf last in schemas.wire.codec.ENCODINGS"
        )


check_encodings(ENCODINGS)


def encoding_of(message: bytes) -> Encoding:
    """Find the encoding of a message."""
    for encoding, codec in ENCODINGS.items():
        if codec.sniff(message):
            return encoding
    raise UnreadableRequest("the message is in no known encoding: send protobuf or JSON")


def decode_request(message: bytes) -> InferRequest:
    """Decode a request, or raise a `RequestError`."""
    if not message:
        raise UnreadableRequest("the record is empty, expected a request: send protobuf or JSON")
    return ENCODINGS[encoding_of(message)].read_request(message)


def find_id(message: bytes) -> tuple[str, Encoding]:
    """Find the id, or an empty one, and the encoding of an invalid request."""
    encoding = encoding_of(message)
    try:
        return ENCODINGS[encoding].find_id(message), encoding
    except AnabranchError:
        return "", encoding


def encode_request(request: InferRequest) -> bytes:
    """Encode a request in its own encoding."""
    return ENCODINGS[request.encoding].write_request(request)


def encode_response(response: InferResponse | ErrorResponse, encoding: Encoding) -> bytes:
    """Encode a response in the encoding of its request."""
    codec = ENCODINGS[encoding]
    return codec.write_error(response) if isinstance(response, ErrorResponse) else codec.write_response(response)


def decode_response(message: bytes) -> InferResponse | ErrorResponse:
    """Decode a response, or raise a `RequestError`."""
    return ENCODINGS[encoding_of(message)].read_response(message)
