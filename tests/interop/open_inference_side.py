"""Runs with `open-inference-grpc`, the protocol's own messages, without this project.

open_inference_side.py write FOLDER   requests with typed and with raw contents, as FOLDER/CASE.request
open_inference_side.py read FOLDER    content of FOLDER/CASE.response, as FOLDER/CASE.json
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from open_inference.grpc.protocol import (  # type: ignore[import-not-found]
    ModelInferRequest,
    ModelInferResponse,
)

#: By datatype: the field of the typed contents, and its values.
TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False, False]),
    "UINT8": ("uint_contents", [0, 1, 255]),
    "UINT16": ("uint_contents", [0, 1, 65_535]),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1]),
    "INT8": ("int_contents", [-128, 1, 127]),
    "INT16": ("int_contents", [-32_768, 1, 32_767]),
    "INT32": ("int_contents", [-(2**31), 1, 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 1, 2**63 - 1]),
    "FP32": ("fp32_contents", [-1.5, 0.25, 1024.0]),
    "FP64": ("fp64_contents", [-1.5, 0.1, 1.7e308]),
    "BYTES": ("bytes_contents", [b"an", b"", b"\x00\xff"]),
}


def write(folder: Path) -> None:
    """Writes all requests."""
    for datatype, (field, values) in TYPED.items():
        message = ModelInferRequest(model_name="m", id=datatype)
        getattr(message.inputs.add(name="x", datatype=datatype, shape=[1, 3]).contents, field).extend(values)
        (folder / f"{datatype}.request").write_bytes(message.SerializeToString())
    half = ModelInferRequest(model_name="m", id="FP16")
    half.inputs.add(name="x", datatype="FP16", shape=[1, 3])
    half.raw_input_contents.append(struct.pack("<3e", -1.5, 0.25, 1024.0))
    (folder / "FP16.request").write_bytes(half.SerializeToString())
    several = ModelInferRequest(model_name="m", model_version="2", id="several")
    several.parameters["priority"].int64_param = 1
    several.parameters["explain"].bool_param = True
    several.parameters["tenant"].string_param = "a"
    for datatype, (field, values) in TYPED.items():
        tensor = several.inputs.add(name=datatype, datatype=datatype, shape=[3, 1])
        getattr(tensor.contents, field).extend(values)
        tensor.parameters["ignored"].bool_param = True
    several.outputs.add(name="FP32").parameters["ignored"].int64_param = 1
    several.outputs.add(name="BYTES")
    (folder / "several.request").write_bytes(several.SerializeToString())


def read(folder: Path) -> None:
    """Reads all answers."""
    for path in folder.glob("*.response"):
        message = ModelInferResponse()
        message.ParseFromString(path.read_bytes())
        said = MessageToDict(message, preserving_proto_field_name=True)
        said["raw_output_contents"] = [raw.hex() for raw in message.raw_output_contents]
        path.with_suffix(".json").write_text(json.dumps(said))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
