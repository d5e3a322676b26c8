"""The encoding of a message is found by its content; the table of encodings is complete."""

import importlib.util
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.schemas import messages
from anabranch.schemas.errors import AnabranchError, RequestTooLarge, UnreadableRequest
from anabranch.schemas.limits import MAX_BYTES_ELEMENTS, MAX_TYPED_ELEMENTS
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from tests.strategies import requests

READ = ("read_request", "read_response", "find_id")
ROW = Tensor.from_array("x", np.ones((1, 4), np.float32))


@pytest.mark.parametrize("datatype", ["BYTES", "FP32"])
def test_codec_request_with_too_many_elements_is_refused(datatype: str) -> None:
    limit = MAX_BYTES_ELEMENTS if datatype == "BYTES" else MAX_TYPED_ELEMENTS
    json = f'{{"inputs": [{{"name": "x", "shape": [{limit + 1}], "datatype": "{datatype}", "data": []}}]}}'
    typed = ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype=datatype, shape=(1, limit + 1))
    for message in (json.encode(), typed.SerializeToString()):
        with pytest.raises(RequestTooLarge, match=f"has {limit + 1} elements, at most {limit} are allowed"):
            codec.decode_request(message)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", list(Encoding))
@given(data=st.data())
def test_codec_request_of_any_encoding_round_trips(encoding: Encoding, data: st.DataObject) -> None:
    request = data.draw(requests(encoding))
    message = codec.encode_request(request)
    assert codec.encoding_of(message) is encoding
    assert codec.decode_request(message) == request
    assert codec.find_id(message) == (request.id, encoding)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("answer", [InferResponse("m", "1", "a", (ROW,)), ErrorResponse("a", "c", "text")])
def test_codec_response_of_any_encoding_round_trips(encoding: Encoding, answer: InferResponse | ErrorResponse) -> None:
    assert codec.decode_response(codec.encode_response(answer, encoding)) == answer


@pytest.mark.parametrize(
    "lead", [b"", b" ", b"\n", b"\r\n", b"\t \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b" " * 123]
)
@pytest.mark.parametrize("size", [*range(100, 140), 1000])
def test_encoding_of_json_after_white_space_is_json(lead: bytes, size: int) -> None:
    # A line feed and a brace open a protobuf message whose model's name has 123 bytes: 125 bytes of JSON fit exactly.
    message = lead + b'{"inputs":[],"id":"%s"}' % (b"a" * (size - 21 - len(lead)))
    assert codec.decode_request(message).encoding is Encoding.JSON
    assert codec.find_id(message) == ("a" * (size - 21 - len(lead)), Encoding.JSON)


@pytest.mark.parametrize("length", [9, 10, 13, 32, 123, 0xEF - 128])
@pytest.mark.parametrize("letter", ["m", "{", "}", "é"])
def test_encoding_of_protobuf_with_any_name_is_protobuf(length: int, letter: str) -> None:
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
def test_decode_request_unknown_encoding_is_unreadable(message: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        codec.decode_request(message)


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\n\t anul0-9\\', max_size=60).map(str.encode))
def test_codec_random_bytes_raise_wire_errors_only(message: bytes) -> None:
    request_id, encoding = codec.find_id(message)
    assert isinstance(request_id, str)
    assert isinstance(encoding, Encoding)
    for read in (codec.decode_request, codec.decode_response):
        try:
            read(message)
        except AnabranchError:
            continue


@pytest.mark.parametrize("forgotten", list(Encoding))
def test_encodings_without_a_codec_are_refused(forgotten: Encoding) -> None:
    codec.check_encodings(codec.ENCODINGS)
    table = {encoding: each for encoding, each in codec.ENCODINGS.items() if encoding is not forgotten}
    with pytest.raises(NotImplementedError, match=rf"no codec for {forgotten.name}"):
        codec.check_encodings(table)


def test_encodings_with_picky_last_codec_are_refused() -> None:
    table = dict(reversed(codec.ENCODINGS.items()))
    with pytest.raises(NotImplementedError, match="protobuf last"):
        codec.check_encodings(table)


def test_encodings_new_one_without_codec_stops_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = IntEnum("Encoding", {**{each.name: each.value for each in Encoding}, "AVRO": 99})  # type: ignore[misc]
    monkeypatch.setattr(messages, "Encoding", planted)
    spec = importlib.util.spec_from_file_location("planted_codec", codec.__file__)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    with pytest.raises(NotImplementedError, match="no codec for AVRO"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_codec_of_any_encoding_raises_wire_errors_only(encoding: Encoding) -> None:
    for name in READ:
        try:
            getattr(codec.ENCODINGS[encoding], name)(b"\x0b\xff{")
        except AnabranchError:
            continue
