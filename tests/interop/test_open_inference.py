import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import DATATYPES, NUMPY_DTYPES
from anabranch.schemas.wire import codec

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, False],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 65_535],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 1, 127],
    "INT16": [-32_768, 1, 32_767],
    "INT32": [-(2**31), 1, 2**31 - 1],
    "INT64": [-(2**63), 1, 2**63 - 1],
    "FP16": [-1.5, 0.25, 1024.0],
    "FP32": [-1.5, 0.25, 1024.0],
    "FP64": [-1.5, 0.1, 1.7e308],
    "BYTES": [b"an", b"", b"\x00\xff"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_there: Callable[..., None]) -> Path:
    made = tmp_path_factory.mktemp("open-inference")
    run_there("open_inference_side.py", "write", str(made))
    for name in (*DATATYPES, "several"):
        request = read_request(made, name)
        response = InferResponse("m", "2", request.id, request.inputs, {"shards": 3, "tenant": "a", "partial": True})
        (made / f"{name}.response").write_bytes(codec.encode_response(response, Encoding.PROTOBUF))
    error = ErrorResponse("e", "wrong_shape", "no", "m", "2")
    (made / "error.response").write_bytes(codec.encode_response(error, Encoding.PROTOBUF))
    run_there("open_inference_side.py", "read", str(made))
    return made


def read_request(folder: Path, name: str) -> InferRequest:
    return codec.decode_request((folder / f"{name}.request").read_bytes())


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_codec_typed_and_raw_contents_are_read(folder: Path, datatype: str) -> None:
    request = read_request(folder, datatype)
    assert (request.model_name, request.id, request.encoding) == ("m", datatype, Encoding.PROTOBUF)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, (1, 3))
    assert tensor.to_array().tolist() == [VALUES[datatype]]


def test_codec_request_with_several_inputs_is_read(folder: Path) -> None:
    request = read_request(folder, "several")
    assert request.outputs == ("FP32", "BYTES")
    assert dict(request.parameters) == {"priority": 1, "explain": True, "tenant": "a"}
    assert request.model_version == "2"
    typed = {name: values for name, values in VALUES.items() if name != "FP16"}
    assert {tensor.name: tensor.to_array().ravel().tolist() for tensor in request.inputs} == typed


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_codec_answer_is_read_by_open_inference(folder: Path, datatype: str) -> None:
    said = json.loads((folder / f"{datatype}.json").read_text())
    assert (said["model_name"], said["model_version"], said["id"]) == ("m", "2", datatype)
    assert said["outputs"] == [{"name": "x", "datatype": datatype, "shape": ["1", "3"]}]
    assert said["parameters"] == {
        "shards": {"int64_param": "3"},
        "tenant": {"string_param": "a"},
        "partial": {"bool_param": True},
    }
    raw = bytes.fromhex(said["raw_output_contents"][0])
    if datatype == "BYTES":
        assert raw == b"\x02\0\0\0an" + b"\0\0\0\0" + b"\x02\0\0\0\x00\xff"
    else:
        assert np.frombuffer(raw, NUMPY_DTYPES[datatype]).tolist() == VALUES[datatype]


def test_codec_error_is_read_by_open_inference(folder: Path) -> None:
    said = json.loads((folder / "error.json").read_text())
    assert said["parameters"] == {
        "error_code": {"string_param": "wrong_shape"},
        "error_message": {"string_param": "no"},
    }
    assert "outputs" not in said
