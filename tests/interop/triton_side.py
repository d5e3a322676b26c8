"""Runs with `tritonclient`, Triton's own client, without this project.

    triton_side.py write FOLDER   every request that the client sends, as FOLDER/CASE.request, its inputs beside it
    triton_side.py read FOLDER    the client's reading of FOLDER/CASE.response, as FOLDER/CASE.outputs.json

The client talks to a server on this machine, which keeps each request and returns prepared answers.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as over_grpc  # type: ignore[import-not-found]
import tritonclient.http as over_http  # type: ignore[import-not-found]

METHOD = "/inference.GRPCInferenceService/ModelInfer"

#: Arrays by the protocol's name of their datatype; not all values are zero or positive, none is symmetric.
ARRAYS: dict[str, Any] = {
    "BOOL": np.array([[True, False, False]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65_535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 1, 127]], np.int8),
    "INT16": np.array([[-32_768, 1, 32_767]], np.int16),
    "INT32": np.array([[-(2**31), 1, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 1, 2**63 - 1]], np.int64),
    "FP16": np.array([[-1.5, 0.0, 65_504.0]], np.float16),
    "FP32": np.array([[-1.5, 0.1, 3.4e38]], np.float32),
    "FP64": np.array([[-1.5, 0.1, 1.7e308]], np.float64),
    "BYTES": np.array([["an", "", "Flußarm ☃"]], dtype=object),
}
NOT_TEXT = np.array([[b"\x00\xff", b"", b"plain"]], dtype=object)


def cases() -> dict[str, dict[str, Any]]:
    """Returns arguments of `infer` by name of the case."""
    one_each = {name.lower(): {"inputs": {"x": array}} for name, array in ARRAYS.items()}
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return one_each | {
        "not_text": {"inputs": {"x": NOT_TEXT}},
        "scalar": {"inputs": {"x": np.array(2.5)}},
        "no_rows": {"inputs": {"x": np.zeros((0, 3), np.float32)}},
        "several": {
            "inputs": {"image": image, "ids": ARRAYS["INT64"], "names": ARRAYS["BYTES"], "flags": ARRAYS["BOOL"]},
            "outputs": ["flags", "image"],
        },
        "parameters": {
            "inputs": {"x": ARRAYS["FP32"]},
            "model_version": "7",
            "request_id": "request ☃",
            "priority": 1,
            "timeout": 2_500_000,
            "sequence_id": "sequence-1",
            "sequence_start": True,
            "parameters": {"tenant": "a", "explain": True, "seed": -7, "temperature": 0.5},
        },
    }


class Server:
    """Keeps the bytes of the last request, and answers with `response`."""

    def __init__(self) -> None:
        self.request = b""
        self.response = b""
        handler = grpc.unary_unary_rpc_method_handler(self._infer)
        service, method = METHOD.strip("/").split("/")
        self._server = grpc.server(ThreadPoolExecutor(1))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Stops the server."""
        self._server.stop(0)

    def _infer(self, request: bytes, _: object) -> bytes:
        self.request = request
        return self.response


def tensors(module: Any, arrays: dict[str, Any], **how: Any) -> list[Any]:
    """Makes the client's inputs from arrays."""
    made = []
    for name, array in arrays.items():
        datatype = next(key for key, value in ARRAYS.items() if value.dtype == array.dtype)
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **how)
        made.append(tensor)
    return made


def write(folder: Path, server: Server) -> None:
    """Writes every case in protobuf, and in JSON if JSON can hold it."""
    client = over_grpc.InferenceServerClient(server.address)
    for name, case in cases().items():
        arguments = dict(case)
        arrays = arguments.pop("inputs")
        names = arguments.pop("outputs", None)
        wanted = [over_grpc.InferRequestedOutput(output) for output in names] if names else None
        client.infer("the model", tensors(over_grpc, arrays), outputs=wanted, **arguments)
        (folder / f"{name}.request").write_bytes(server.request)
        (folder / f"{name}.inputs.json").write_text(json.dumps({key: plain(value) for key, value in arrays.items()}))
        # The client refuses to write FP16 as JSON, and JSON cannot hold bytes that are not text.
        if name in {"fp16", "not_text"}:
            continue
        wanted = [over_http.InferRequestedOutput(output, binary_data=False) for output in names] if names else None
        arguments.pop("model_version", None)
        body, header_size = over_http.InferenceServerClient.generate_request_body(
            tensors(over_http, arrays, binary_data=False), outputs=wanted, **arguments
        )
        assert header_size is None, "there is a binary part"
        (folder / f"{name}.json.request").write_bytes(body)
    client.close()


def read(folder: Path, server: Server) -> None:
    """Reads all answers."""
    client = over_grpc.InferenceServerClient(server.address)
    for path in sorted(folder.glob("*.response")):
        server.response = path.read_bytes()
        if server.response.startswith(b"{"):
            result = over_http.InferResult.from_response_body(server.response)
            response = result.get_response()
            outputs = [output["name"] for output in response.get("outputs", [])]
            head = {key: value for key, value in response.items() if key != "outputs"}
        else:
            result = client.infer("the model", tensors(over_grpc, {"x": ARRAYS["FP32"]}))
            response = result.get_response()
            outputs = [output.name for output in response.outputs]
            head = {"id": response.id, "model_name": response.model_name, "model_version": response.model_version}
            head["parameters"] = {
                key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()
            }
        head["outputs"] = {name: plain(result.as_numpy(name)) for name in outputs}
        path.with_suffix(".outputs.json").write_text(json.dumps(head))
    client.close()


def plain(array: Any) -> dict[str, Any]:
    """Converts an array to JSON exactly: elements as text or, for BYTES, in hex."""
    flat = array.ravel()
    if array.dtype == object:
        elements = [(item.encode() if isinstance(item, str) else item).hex() for item in flat]
    else:
        elements = [repr(item) for item in flat.tolist()]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "elements": elements}


if __name__ == "__main__":
    action = {"write": write, "read": read}[sys.argv[1]]
    recorder = Server()
    try:
        action(Path(sys.argv[2]), recorder)
    finally:
        recorder.stop()
