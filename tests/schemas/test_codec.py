"""Which form a message is in is told by its content, whatever it looks like at first sight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.schemas import codec
from anabranch.schemas.errors import AnabranchError, UnreadableRequest
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from tests.strategies import requests

ROW = Tensor.from_array("x", np.ones((1, 4), np.float32))


@pytest.mark.parametrize("encoding", list(Encoding))
@given(data=st.data())
def test_a_request_of_either_form_reads_back_equal_and_yields_its_id(encoding: Encoding, data: st.DataObject) -> None:
    request = data.draw(requests(encoding))
    message = codec.encode_request(request)
    assert codec.is_json(message) == (encoding is Encoding.JSON)
    assert codec.decode_request(message) == request
    assert codec.find_id(message) == (request.id, encoding)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("answer", [InferResponse("m", "1", "a", (ROW,)), ErrorResponse("a", "c", "text")])
def test_an_answer_of_either_form_reads_back_equal(encoding: Encoding, answer: InferResponse | ErrorResponse) -> None:
    assert codec.decode_response(codec.encode_response(answer, encoding)) == answer


@pytest.mark.parametrize(
    "lead", [b"", b" ", b"\n", b"\r\n", b"\t \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b" " * 123]
)
@pytest.mark.parametrize("size", [*range(100, 140), 1000])
def test_json_after_white_space_or_a_byte_order_mark_is_json_at_any_size(lead: bytes, size: int) -> None:
    # A line feed and a brace open a protobuf message whose model's name has 123 bytes: 125 bytes of JSON fit exactly.
    message = lead + b'{"inputs":[],"id":"%s"}' % (b"a" * (size - 21 - len(lead)))
    assert codec.decode_request(message).encoding is Encoding.JSON
    assert codec.find_id(message) == ("a" * (size - 21 - len(lead)), Encoding.JSON)


@pytest.mark.parametrize("length", [9, 10, 13, 32, 123, 0xEF - 128])
@pytest.mark.parametrize("letter", ["m", "{", "}", "é"])
def test_a_protobuf_message_is_protobuf_however_long_its_model_name_is(length: int, letter: str) -> None:
    name = letter * (length // len(letter.encode()))
    message = codec.encode_request(InferRequest(name, (ROW,), id="a"))
    assert codec.decode_request(message).model_name == name
    assert codec.find_id(message) == ("a", Encoding.PROTOBUF)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"\n{",
        b"[]",
        b"null",
        b'"text"',
        b"<xml/>",
        b"hello, world",
        b"\0" * 10,
        b"\xfe\xff\0{\0}",  # UTF-16
        '{"inputs": []}'.encode("utf-16"),
        b"\x1f\x8b\x08\0\0",  # gzip
    ],
)
def test_what_is_in_neither_form_is_unreadable(message: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        codec.decode_request(message)


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\n\t anul0-9\\', max_size=60).map(str.encode))
def test_any_bytes_raise_nothing_but_our_errors(message: bytes) -> None:
    request_id, encoding = codec.find_id(message)
    assert isinstance(request_id, str)
    assert isinstance(encoding, Encoding)
    for read in (codec.decode_request, codec.decode_response):
        try:
            read(message)
        except AnabranchError:
            continue
