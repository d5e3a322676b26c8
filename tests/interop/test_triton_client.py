import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import BYTES, DATATYPES, Tensor
from anabranch.schemas.wire import codec

# The client refuses to write FP16 as JSON, and JSON cannot hold bytes that are not text.
NOT_IN_JSON = {"fp16", "not_text"}
IN_PROTOBUF = sorted({name.lower() for name in DATATYPES} | {"not_text", "scalar", "no_rows", "several", "parameters"})
CASES = [(name, Encoding.PROTOBUF) for name in IN_PROTOBUF]
CASES += [(name, Encoding.JSON) for name in IN_PROTOBUF if name not in NOT_IN_JSON]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_there: Callable[..., None]) -> Path:
    """A folder with the client's requests, answers that echo them, and the client's readings of the answers."""
    made = tmp_path_factory.mktemp("triton")
    run_there("triton_side.py", "write", str(made))
    for name, encoding in CASES:
        request = read_request(made, name, encoding)
        by_name = {tensor.name: tensor for tensor in request.inputs}
        outputs = tuple(by_name[output] for output in request.outputs) or request.inputs
        response = InferResponse(
            "the model", request.model_version or "1", request.id, outputs, {"shards": 3, "missing_rows": "0-1"}
        )
        path_of(made, name, encoding, "response").write_bytes(codec.encode_response(response, encoding))
    for encoding in Encoding:
        error = ErrorResponse("request ☃", "unknown_model", "no model ☃", "the model", "7")
        path_of(made, "error", encoding, "response").write_bytes(codec.encode_response(error, encoding))
    run_there("triton_side.py", "read", str(made))
    return made


def path_of(folder: Path, name: str, encoding: Encoding, suffix: str) -> Path:
    return folder / f"{name}{'.json' if encoding is Encoding.JSON else ''}.{suffix}"


def read_request(folder: Path, name: str, encoding: Encoding) -> InferRequest:
    return codec.decode_request(path_of(folder, name, encoding, "request").read_bytes())


def plain(tensor: Tensor) -> dict[str, Any]:
    """Converts a tensor as `plain` of triton_side.py does."""
    array = tensor.to_array()
    flat = array.ravel().tolist()
    elements = [item.hex() for item in flat] if tensor.datatype == BYTES else [repr(item) for item in flat]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "elements": elements}


@pytest.mark.parametrize(("name", "encoding"), CASES)
def test_codec_triton_request_is_read(folder: Path, name: str, encoding: Encoding) -> None:
    request = read_request(folder, name, encoding)
    sent = json.loads((folder / f"{name}.inputs.json").read_text())
    assert request.encoding is encoding
    assert {tensor.name: plain(tensor) for tensor in request.inputs} == sent
    assert request.model_name == ("the model" if encoding is Encoding.PROTOBUF else "")


def test_triton_cases_cover_every_datatype(folder: Path) -> None:
    seen = {tensor.datatype for name, encoding in CASES for tensor in read_request(folder, name, encoding).inputs}
    assert seen == DATATYPES


@pytest.mark.parametrize("encoding", Encoding)
def test_codec_triton_parameters_are_read(folder: Path, encoding: Encoding) -> None:
    request = read_request(folder, "parameters", encoding)
    expected: dict[str, Any] = {
        "priority": 1,
        "timeout": 2_500_000,
        "sequence_id": "sequence-1",
        "sequence_start": True,
        "sequence_end": False,
        "tenant": "a",
        "explain": True,
        "seed": -7,
        "temperature": 0.5,
    }
    if encoding is Encoding.JSON:
        expected["binary_data_output"] = True
    assert dict(request.parameters) == expected
    assert {name: type(value) for name, value in request.parameters.items()} == {
        name: type(value) for name, value in expected.items()
    }
    assert request.id == "request ☃"
    assert request.model_version == ("7" if encoding is Encoding.PROTOBUF else "")


@pytest.mark.parametrize("encoding", Encoding)
def test_codec_triton_outputs_are_read(folder: Path, encoding: Encoding) -> None:
    assert read_request(folder, "several", encoding).outputs == ("flags", "image")


@pytest.mark.parametrize(("name", "encoding"), CASES)
def test_codec_answer_is_read_by_triton(folder: Path, name: str, encoding: Encoding) -> None:
    request = read_request(folder, name, encoding)
    got = json.loads(path_of(folder, name, encoding, "outputs.json").read_text())
    sent = {tensor.name: plain(tensor) for tensor in request.inputs}
    wanted = request.outputs or tuple(sent)
    assert list(got["outputs"]) == list(wanted)
    assert got["outputs"] == {output: sent[output] for output in wanted}
    assert (got["model_name"], got["model_version"]) == ("the model", request.model_version or "1")
    assert got["id"] == request.id
    assert got["parameters"] == {"shards": 3, "missing_rows": "0-1"}


def test_codec_error_is_read_by_triton(folder: Path) -> None:
    protobuf = json.loads(path_of(folder, "error", Encoding.PROTOBUF, "outputs.json").read_text())
    assert protobuf == {
        "id": "request ☃",
        "model_name": "the model",
        "model_version": "7",
        "parameters": {"error_code": "unknown_model", "error_message": "no model ☃"},
        "outputs": {},
    }
    from_json = json.loads(path_of(folder, "error", Encoding.JSON, "outputs.json").read_text())
    assert (from_json["id"], from_json["code"], from_json["error"]) == ("request ☃", "unknown_model", "no model ☃")


def test_codec_raw_tensor_stays_a_view(folder: Path) -> None:
    (tensor,) = read_request(folder, "fp32", Encoding.PROTOBUF).inputs
    assert isinstance(tensor.data, memoryview)
    assert np.shares_memory(np.frombuffer(tensor.data, np.uint8), tensor.to_array())
