"""Asks a gateway with `tritonclient`, over HTTP and gRPC, plain, asynchronous and streaming; without this project.

triton_at_gateway.py HTTP_ADDRESS GRPC_ADDRESS     models as in tests/gateway/conftest.py
"""

import asyncio
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc  # type: ignore[import-not-found]
import tritonclient.grpc.aio as over_grpc_aio  # type: ignore[import-not-found]
import tritonclient.http as over_http  # type: ignore[import-not-found]
import tritonclient.http.aio as over_http_aio  # type: ignore[import-not-found]
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]

HALVES = np.array([[0.5, -1.5]], np.float16)
FLOATS = np.array([[0.5, -1.5], [3.25, 1e-3]], np.float32)
WORDS = np.array([["grüße", ""]], dtype=object)


def inputs(module: Any, array: Any, datatype: str, **options: Any) -> list[Any]:
    made = module.InferInput("x", list(array.shape), datatype)
    made.set_data_from_numpy(array, **options)
    return [made]


def check(result: Any, array: Any) -> None:
    found = result.as_numpy("y")
    if array.dtype == object:
        found = np.array([[word.decode() if isinstance(word, bytes) else word for word in found.ravel()]], dtype=object)
    assert found.tolist() == array.tolist(), (found, array)


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error.message())
    raise AssertionError("no error")


def describe(client: Any, *, as_json: dict[str, Any]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("same")
    assert client.is_model_ready("same", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata(**as_json)["name"] == "anabranch"
    metadata = client.get_model_metadata("same", **as_json)
    assert [metadata["inputs"][0]["datatype"], metadata["versions"]] == ["FP32", ["1", "2"]]
    config = client.get_model_config("half", **as_json)
    assert config.get("config", config)["input"][0]["data_type"] == "TYPE_FP16"
    index = client.get_model_repository_index(**as_json)
    models = index["models"] if isinstance(index, dict) else index
    assert {"name": "text", "version": "1", "state": "READY"}.items() <= next(
        each for each in models if each["name"] == "text"
    ).items()
    statistics = client.get_inference_statistics("same", **as_json)
    assert len(statistics["model_stats"]) == 2


def http(address: str) -> None:
    client = over_http.InferenceServerClient(address, concurrency=4)
    describe(client, as_json={})
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [over_http.InferRequestedOutput("y", binary_data=binary_out)]
            for model, array, datatype in (("same", FLOATS, "FP32"), ("text", WORDS, "BYTES")):
                asked = inputs(over_http, array, datatype, binary_data=binary_in)
                check(client.infer(model, asked, outputs=outputs, request_id="mine"), array)
    check(client.infer("half", inputs(over_http, HALVES, "FP16")), HALVES)
    for compression in ("gzip", "deflate"):
        rows = np.arange(2_000, dtype=np.float32).reshape(-1, 2)
        result = client.infer(
            "same",
            inputs(over_http, rows, "FP32"),
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        check(result, rows)
    waiting = [client.async_infer("same", inputs(over_http, FLOATS, "FP32")) for _ in range(8)]
    for each in waiting:
        check(each.get_result(), FLOATS)
    assert "unknown model" in error_of(lambda: client.infer("nothing", inputs(over_http, FLOATS, "FP32")))
    client.close()


async def at_once(over: Any, address: str) -> None:
    client = over.InferenceServerClient(address)
    asked = [client.infer("same", inputs(over, FLOATS, "FP32")) for _ in range(20)]
    for result in await asyncio.gather(*asked):
        check(result, FLOATS)
    await client.close()


def grpc(address: str) -> None:
    client = over_grpc.InferenceServerClient(address)
    describe(client, as_json={"as_json": True})
    for model, array, datatype in (("same", FLOATS, "FP32"), ("text", WORDS, "BYTES"), ("half", HALVES, "FP16")):
        result = client.infer(model, inputs(over_grpc, array, datatype), request_id="mine", client_timeout=20)
        check(result, array)
        assert result.get_response().id == "mine"
    assert "poison" in error_of(lambda: client.infer("bad", inputs(over_grpc, FLOATS, "FP32")))
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        client.async_stream_infer("same", inputs(over_grpc, FLOATS + number, "FP32"), request_id=str(number))
    for number in range(20):
        result, failure = answers.get(timeout=20)
        assert failure is None, failure
        assert result.get_response().id == str(number)
        check(result, FLOATS + number)
    client.stop_stream()
    client.close()


if __name__ == "__main__":
    http(sys.argv[1])
    asyncio.run(at_once(over_http_aio, sys.argv[1]))
    grpc(sys.argv[2])
    asyncio.run(at_once(over_grpc_aio, sys.argv[2]))
    print("all answers are right")
