"""The JSON encoding accepts what clients write, and refuses the rest with a wire error."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.schemas.errors import AnabranchError, MalformedRequest, UnreadableRequest, WrongDatatype, WrongSize
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor, raw_from_elements
from anabranch.schemas.wire import json_wire
from tests.strategies import parameters, requests, tensors, texts


def message(data: str, datatype: str = "FP32", shape: str = "[2, 2]") -> bytes:
    tensor = f'{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}'
    return f'{{"id": "a", "inputs": [{tensor}]}}'.encode()


def read_data(*args: str) -> Any:
    [tensor] = json_wire.read_request(message(*args)).inputs
    return tensor.to_array().tolist()


@given(requests(Encoding.JSON))
def test_json_any_request_round_trips(request: InferRequest) -> None:
    assert json_wire.read_request(json_wire.write_request(request)) == request


@given(texts, texts, texts, st.lists(tensors(encoding=Encoding.JSON), max_size=3), parameters)
def test_json_any_response_round_trips_as_plain_json(
    name: str, version: str, request_id: str, outputs: list[Tensor], values: dict[str, bool | int | str | float]
) -> None:
    response = InferResponse(name, version, request_id, tuple(outputs), values)
    written = json_wire.write_response(response)
    assert json_wire.read_response(written) == response
    assert json.loads(written)["id"] == request_id


@given(texts, texts, texts)
def test_json_error_has_the_agreed_fields(request_id: str, code: str, text: str) -> None:
    written = json_wire.write_error(ErrorResponse(request_id, code, text))
    assert json.loads(written) == {"id": request_id, "error": text, "code": code}
    assert json_wire.read_response(written) == ErrorResponse(request_id, code, text)
    named = ErrorResponse(request_id, code, text, "m", "1")
    assert json_wire.read_response(json_wire.write_error(named)) == named


@pytest.mark.parametrize("data", ["[1, 2, 3, 4]", "[[1, 2], [3, 4]]", "[1.0, 2e0, 3, 4]", "[[1.0, 2],\n [3, 4]]"])
def test_json_data_flat_or_nested_is_read(data: str) -> None:
    assert read_data(data) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "expected"),
    [
        ("[]", "FP32", "[0, 3]", []),
        ("[[], []]", "FP32", "[2, 0]", [[], []]),
        ("5", "INT8", "[]", 5),
        ("[5]", "INT8", "[]", 5),
        ("[-128, 127]", "INT8", "[2]", [-128, 127]),
        ("[18446744073709551615]", "UINT64", "[1]", [2**64 - 1]),
        ("[-9223372036854775808]", "INT64", "[1]", [-(2**63)]),
        ("[true, false]", "BOOL", "[2]", [True, False]),
        ("[65504, 0.1]", "FP16", "[2]", [65504, np.float16(0.1)]),
        ('["", "\\u0000", "\\ud83d\\ude00", "é"]', "BYTES", "[4]", [b"", b"\0", "😀".encode(), "é".encode()]),
        ('[["a"], ["b"]]', "BYTES", "[2, 1]", [[b"a"], [b"b"]]),
    ],
)
def test_json_data_of_any_datatype_is_read(data: str, datatype: str, shape: str, expected: object) -> None:
    assert read_data(data, datatype, shape) == expected


def test_json_floats_null_stands_for_nan() -> None:
    [tensor] = json_wire.read_request(message("[[1, null], [3, 4]]")).inputs
    np.testing.assert_array_equal(tensor.to_array(), np.array([[1, np.nan], [3, 4]]))
    values = np.array([np.nan, np.inf, -np.inf, 1], np.float64)
    written = json_wire.write_response(InferResponse("m", "1", "a", (Tensor.from_array("y", values),)))
    assert json.loads(written)["outputs"][0]["data"] == [None, None, None, 1]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "error"),
    [
        ("[1, 2, 3]", "FP32", "[2, 2]", WrongSize),
        ("[[1, 2, 3], [4]]", "FP32", "[2, 2]", WrongSize),
        ("[[1], [2], [3], [4]]", "FP32", "[2, 2]", WrongSize),
        ("[[1, 2], 3, 4]", "FP32", "[2, 2]", WrongSize),
        ("[[[1, 2], [3, 4]]]", "FP32", "[2, 2]", WrongSize),
        ("[" * 900 + "]" * 900, "FP32", "[1]", MalformedRequest),
        ("[1, 2, 3, 4]", "FP99", "[2, 2]", WrongDatatype),
        ("[1, 2, 3, 4]", "fp32", "[2, 2]", WrongDatatype),
        ('["1", "2", "3", "4"]', "FP32", "[2, 2]", MalformedRequest),
        ("[1.5]", "INT32", "[1]", MalformedRequest),
        ("[null]", "INT32", "[1]", MalformedRequest),
        ("[true]", "INT32", "[1]", MalformedRequest),
        ("[1]", "BOOL", "[1]", MalformedRequest),
        ("[1]", "BYTES", "[1]", MalformedRequest),
        ("[null]", "BYTES", "[1]", MalformedRequest),
        ("null", "FP32", "[1]", MalformedRequest),
        ("null", "FP32", "[]", MalformedRequest),
        ("5", "FP32", "[1]", MalformedRequest),
        ('{"a": 1}', "FP32", "[1]", MalformedRequest),
        ('"1"', "FP32", "[1]", MalformedRequest),
        ("[256]", "UINT8", "[1]", MalformedRequest),
        ("[-1]", "UINT64", "[1]", MalformedRequest),
        ("[18446744073709551616]", "UINT64", "[1]", MalformedRequest),
        ("[9223372036854775808]", "INT64", "[1]", MalformedRequest),
        (f"[{'9' * 5000}]", "INT64", "[1]", MalformedRequest),
        ("[1e39]", "FP32", "[1]", MalformedRequest),
        ("[70000]", "FP16", "[1]", MalformedRequest),
        ("[1e400]", "FP64", "[1]", MalformedRequest),
        ("[1]", "FP32", "[-1]", MalformedRequest),
        ("[1]", "FP32", "[1.5]", MalformedRequest),
        ("[1]", "FP32", f"[{'9' * 4000}]", MalformedRequest),
        ("[1]", "FP32", f"[{'9' * 5000}]", MalformedRequest),
        ("[1]", "FP32", "[9223372036854775807, 9223372036854775807]", MalformedRequest),
        ("[1]", "FP32", str([1] * 65), MalformedRequest),
    ],
)
def test_json_data_against_the_protocol_is_refused(
    data: str, datatype: str, shape: str, error: type[AnabranchError]
) -> None:
    with pytest.raises(error) as refused:
        json_wire.read_request(message(data, datatype, shape))
    assert type(refused.value) is error
    assert json_wire.find_id(message(data, datatype, shape)) == "a"


@pytest.mark.parametrize(
    "fields",
    [
        '"inputs": {}',
        '"inputs": [{"name": "x"}]',
        '"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]',
        '"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]',
        '"inputs": [], "parameters": {"priority": [1]}',
        '"inputs": [], "parameters": []',
        '"inputs": [], "outputs": [{}]',
        '"inputs": [], "model_name": 5',
    ],
)
def test_json_message_with_wrong_fields_is_malformed(fields: str) -> None:
    broken = f'{{"id": "a", {fields}}}'.encode()
    with pytest.raises(MalformedRequest):
        json_wire.read_request(broken)
    assert json_wire.find_id(broken) == "a"


@pytest.mark.parametrize(
    "broken",
    [
        b"{",
        b"{]",
        b'{"id": "a", "inputs": [',
        b'{"id": "a", "inputs": []} trailing',
        b'{"id": "\xff", "inputs": []}',
        b'{"id": "\\ud800", "inputs": []}',
        b'{"inputs": [], "id": "NaN',
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaNs]}]}',
        b'{"NaN": "' + b'\\"' * 100_000,
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["\\ud800"]}]}',
        b'{"a":' * 100_000,
        b'{"inputs": [{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=lambda broken: broken[:30].decode(errors="replace"),
)
def test_json_message_with_wrong_syntax_is_unreadable(broken: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        json_wire.read_request(broken)
    assert isinstance(json_wire.find_id(broken), str)


def test_json_optional_fields_as_null_are_read() -> None:
    request = json_wire.read_request(
        b'{"id": null, "model_name": null, "model_version": null, "outputs": null, "parameters": {"timeout": null},'
        b' "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "parameters": null}]}'
    )
    assert (request.id, request.model_name, request.model_version, request.outputs) == ("", "", "", ())
    assert request.parameters == {}
    assert json_wire.read_request(b'{"parameters": null, "inputs": []}').parameters == {}


def test_json_repeated_key_last_one_counts() -> None:
    twice = b'{"id": "first", "inputs": [], "id": "second"}'
    assert json_wire.read_request(twice).id == json_wire.find_id(twice) == "second"


def test_json_bytes_without_utf8_are_refused() -> None:
    tensor = Tensor("s", "BYTES", (1,), raw_from_elements([b"\xff"]))
    with pytest.raises(WrongDatatype, match="protobuf"):
        json_wire.write_request(InferRequest("m", (tensor,), encoding=Encoding.JSON))
    with pytest.raises(WrongDatatype, match="protobuf"):
        json_wire.write_response(InferResponse("m", "1", "a", (tensor,)))


@pytest.mark.slow
@settings(max_examples=300)
@given(requests(Encoding.JSON), st.data())
def test_json_damaged_message_raises_wire_errors_only(request: InferRequest, data: st.DataObject) -> None:
    damaged = bytearray(json_wire.write_request(request))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (json_wire.read_request, json_wire.read_response, json_wire.find_id):
        try:
            read(bytes(damaged))
        except AnabranchError:
            continue


def test_json_numbers_that_are_not_finite_are_read() -> None:
    message = (
        b'{"id": "NaN, \\"Infinity\\"", "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", '
        b'"data": [[NaN, -Infinity], ["Infinity", 1.5]]}]}'
    )
    request = json_wire.read_request(message)
    assert request.id == json_wire.find_id(message) == 'NaN, "Infinity"'
    found = request.inputs[0].to_array()
    np.testing.assert_array_equal(found, np.array([[np.nan, -np.inf], [np.inf, 1.5]], np.float32))


def test_json_text_named_nan_stays_text() -> None:
    message = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["NaN"]}]}'
    assert json_wire.read_request(message).inputs[0].to_array().tolist() == [b"NaN"]


@pytest.mark.parametrize("datatype", ["INT32", "BOOL"])
def test_json_nan_of_another_datatype_is_malformed(datatype: str) -> None:
    message = b'{"id": 7, "inputs": [{"name": "x", "shape": [1], "datatype": "%s", "data": [NaN]}]}' % datatype.encode()
    with pytest.raises(MalformedRequest):
        json_wire.read_request(message)
    assert json_wire.find_id(message) == "7"


@pytest.mark.parametrize(("written", "read"), [("7", "7"), ("-1", "-1"), (f"{2**70}", f"{2**70}"), ("null", "")])
def test_json_id_that_is_a_number_is_read_as_text(written: str, read: str) -> None:
    message = f'{{"id": {written}, "inputs": []}}'.encode()
    assert json_wire.read_request(message).id == json_wire.find_id(message) == read
