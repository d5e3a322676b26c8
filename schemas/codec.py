"""Bytes to request and answer to bytes, whatever form they are in; the two forms are told apart by content.

A JSON message starts with `{`, perhaps after white space or a byte order mark. As protobuf that byte would open a
group in field 15, which no message of the protocol has. White space can open a protobuf message: a line feed is the tag
of `model_name`, and a name of 123 characters follows it with a `{`. But then a quote would have to be that name's first
character, and no folder of a model starts with one.
"""

import re

from anabranch.schemas import json_wire, protobuf_wire
from anabranch.schemas.errors import AnabranchError, UnreadableRequest
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_find_json = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{\s*\"|\{").match


def is_json(message: bytes) -> bool:
    """Whether a message is to be read as JSON rather than as protobuf."""
    return _find_json(message) is not None


def decode_request(message: bytes) -> InferRequest:
    """The request in a record of either form.

    Raises:
        UnreadableRequest: It is in neither form.
        RequestError: It is readable, but breaks the protocol; see the codecs of the two forms.
    """
    if not message:
        raise UnreadableRequest("the record is empty")
    if is_json(message):
        return json_wire.read_request(message.removeprefix(_BYTE_ORDER_MARK))
    return protobuf_wire.read_request(message)


def find_id(message: bytes) -> tuple[str, Encoding]:
    """The id and form of a request that breaks the protocol, so that it can be answered; an empty id means nobody."""
    if is_json(message):
        return json_wire.find_id(message.removeprefix(_BYTE_ORDER_MARK)), Encoding.JSON
    try:
        start, end = protobuf_wire.open_envelope(message).id_at
        return protobuf_wire.decode_id(message[start:end]), Encoding.PROTOBUF
    except AnabranchError:
        return "", Encoding.PROTOBUF


def encode_request(request: InferRequest) -> bytes:
    """A request in its own form."""
    if request.encoding is Encoding.JSON:
        return json_wire.write_request(request)
    return protobuf_wire.write_request(request)


def encode_response(response: InferResponse | ErrorResponse, encoding: Encoding) -> bytes:
    """An answer in the form that its request came in."""
    if isinstance(response, ErrorResponse):
        return json_wire.write_error(response) if encoding is Encoding.JSON else protobuf_wire.write_error(response)
    return json_wire.write_response(response) if encoding is Encoding.JSON else protobuf_wire.write_response(response)


def decode_response(message: bytes) -> InferResponse | ErrorResponse:
    """The answer in a record of either form.

    Raises:
        UnreadableRequest: It is in neither form.
    """
    if message[:1] == b"{":
        return json_wire.read_response(message)
    return protobuf_wire.read_response(message)
