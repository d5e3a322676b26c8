"""Requests and responses in any encoding: the table of encodings, and the choice among them by content.

A new encoding is a module with the functions of `Codec`, a member of `Encoding`, and a line in `ENCODINGS`.
"""

from typing import Protocol

from anabranch.schemas import json_wire, protobuf_wire
from anabranch.schemas.errors import AnabranchError, UnreadableRequest
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse


class Codec(Protocol):
    """One encoding; a module is one if it has these functions."""

    def sniff(self, message: bytes, /) -> bool:
        """Whether a message is to be read in this encoding."""

    def read_request(self, message: bytes, /) -> InferRequest:
        """Decodes a request.

        Raises:
            UnreadableRequest: The bytes are not in this encoding.
            RequestError: The message breaks the protocol.
        """

    def write_request(self, request: InferRequest, /) -> bytes:
        """Encodes a request."""

    def read_response(self, message: bytes, /) -> InferResponse | ErrorResponse:
        """Decodes a response.

        Raises:
            UnreadableRequest: The bytes are not in this encoding.
            RequestError: The message breaks the protocol.
        """

    def write_response(self, response: InferResponse, /) -> bytes:
        """Encodes a response.

        Raises:
            RequestError: The encoding cannot carry it.
        """

    def write_error(self, error: ErrorResponse, /) -> bytes:
        """Encodes a failure."""

    def find_id(self, message: bytes, /) -> str:
        """Returns the id of a request that breaks the protocol; empty if it cannot be found."""


#: In the order in which they are tried; protobuf, which has no mark of its own, takes the rest.
ENCODINGS: dict[Encoding, Codec] = {Encoding.JSON: json_wire, Encoding.PROTOBUF: protobuf_wire}


def check_encodings(encodings: dict[Encoding, Codec]) -> None:
    """Fails on an encoding without a codec, and on a table that leaves a message to no encoding.

    Raises:
        NotImplementedError: The table is not complete.
    """
    missing = [encoding.name for encoding in Encoding if encoding not in encodings]
    if missing:
        raise NotImplementedError(f"no codec for {', '.join(missing)}: add it to schemas.codec.ENCODINGS")
    if not list(encodings.values())[-1].sniff(b""):
        raise NotImplementedError("the last codec must take any message: put protobuf last in schemas.codec.ENCODINGS")


check_encodings(ENCODINGS)


def encoding_of(message: bytes) -> Encoding:
    """Returns the encoding in which a message is to be read."""
    for encoding, codec in ENCODINGS.items():
        if codec.sniff(message):
            return encoding
    raise UnreadableRequest("the message is in no known encoding")


def decode_request(message: bytes) -> InferRequest:
    """Decodes a request.

    Raises:
        UnreadableRequest: It is in none of the encodings.
        RequestError: It breaks the protocol.
    """
    if not message:
        raise UnreadableRequest("the record is empty")
    return ENCODINGS[encoding_of(message)].read_request(message)


def find_id(message: bytes) -> tuple[str, Encoding]:
    """Returns id and encoding of a request that breaks the protocol; the id is empty if it cannot be found."""
    encoding = encoding_of(message)
    try:
        return ENCODINGS[encoding].find_id(message), encoding
    except AnabranchError:
        return "", encoding


def encode_request(request: InferRequest) -> bytes:
    """Encodes a request in its own encoding."""
    return ENCODINGS[request.encoding].write_request(request)


def encode_response(response: InferResponse | ErrorResponse, encoding: Encoding) -> bytes:
    """Encodes a response in the encoding of its request."""
    codec = ENCODINGS[encoding]
    return codec.write_error(response) if isinstance(response, ErrorResponse) else codec.write_response(response)


def decode_response(message: bytes) -> InferResponse | ErrorResponse:
    """Decodes a response.

    Raises:
        UnreadableRequest: It is in none of the encodings.
    """
    return ENCODINGS[encoding_of(message)].read_response(message)
