"""The HTTP door: the protocol, its errors, and limits; over a socket, with a fake job."""

import contextlib
import gzip
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anabranch.gateway.access import Keys
from tests.gateway.conftest import Served
from tests.monitoring.test_metrics import samples

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]}


def call(
    served: Served,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, bytes, dict[str, str]]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(served.url + path, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read(), {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def asked(served: Served, path: str, *arguments: Any, **options: Any) -> tuple[int, Any]:
    status, body, _ = call(served, path, *arguments, **options)
    return status, json.loads(body)


def test_http_descriptions_are_as_the_protocol_says(served: Served) -> None:
    for path in ("/v2", "/v2/"):
        status, server = asked(served, path)
        assert (status, server["name"]) == (200, "anabranch")
        assert "binary_tensor_data" in server["extensions"]
    assert asked(served, "/v2/health/live") == (200, {"live": True})
    assert asked(served, "/v2/health/ready") == (200, {"ready": True})
    assert asked(served, "/v2/models")[1]["models"] == ["same", "half", "text", "slow", "bad"]
    described = {
        "name": "same",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    for path in ("", "/versions/1", "/versions/latest"):
        assert asked(served, f"/v2/models/same{path}") == (200, described)
        assert asked(served, f"/v2/models/same{path}/ready") == (200, {"name": "same", "ready": True})
    config = asked(served, "/v2/models/half/config")[1]
    assert (config["max_batch_size"], config["input"]) == (8, [{"name": "x", "data_type": "TYPE_FP16", "dims": [2]}])
    index = asked(served, "/v2/repository/index", {})[1]
    assert {"name": "same", "version": "2", "state": "READY", "reason": ""} in index
    assert "/v2/models/{model}/infer" in asked(served, "/v2/docs/dataplane.json")[1]["paths"]
    assert b"same/2" in call(served, "/v2/docs")[1]


@pytest.mark.parametrize("version", ["", "/versions/1", "/versions/latest"])
def test_http_infer_json_gives_the_outputs_and_the_id(shared: Served, version: str) -> None:
    body = {"id": "mine", "inputs": [X], "parameters": {"priority": 1, "tenant": "blue"}}
    status, answer = asked(shared, f"/v2/models/same{version}/infer", body)
    assert status == 200
    assert (answer["id"], answer["model_version"]) == ("mine", "1" if version == "/versions/1" else "2")
    assert answer["outputs"] == [{**X, "name": "y"}]
    request = shared.job.requests[-1]
    assert request.parameters["tenant"] == "blue"
    assert 0 < int(request.parameters["timeout"]) <= 5_000_000


def test_http_infer_without_id_answers_without_one(served: Served) -> None:
    assert "id" not in asked(served, "/v2/models/same/infer", {"inputs": [X]})[1]


def binary(
    served: Served, model: str, array: np.ndarray[Any, Any], datatype: str, raw: bytes, **fields: Any
) -> tuple[dict[str, Any], bytes]:
    tensor = {"name": "x", "shape": array.shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], **fields}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, body, answered = call(served, f"/v2/models/{model}/infer", head + raw, headers)
    assert status == 200, body
    size = int(answered.get("inference-header-content-length", len(body)))
    return json.loads(body[:size]), body[size:]


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [("same", "FP32", np.array([[1.5, 2.5]], np.float32)), ("half", "FP16", np.array([[0.5, -1.0]], np.float16))],
)
def test_http_infer_binary_in_and_out_keeps_the_bytes(
    served: Served, model: str, datatype: str, array: np.ndarray[Any, Any]
) -> None:
    raw = array.tobytes()
    answer, tail = binary(served, model, array, datatype, raw, parameters={"binary_data_output": True})
    assert answer["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    assert tail == raw
    answer, tail = binary(served, model, array, datatype, raw, outputs=[{"name": "y"}])
    assert (answer["outputs"][0]["data"], tail) == (array.ravel().tolist(), b"")
    answer, tail = binary(
        served, model, array, datatype, raw, outputs=[{"name": "y", "parameters": {"binary_data": True}}]
    )
    assert tail == raw


def test_http_infer_bytes_as_json_and_binary(served: Served) -> None:
    words = np.array([["grüße", ""]], dtype=object)
    raw = b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in words.ravel())
    answer, _ = binary(served, "text", words, "BYTES", raw)
    assert answer["outputs"][0]["data"] == ["grüße", ""]
    _, tail = binary(served, "text", words, "BYTES", raw, parameters={"binary_data_output": True})
    assert tail == raw


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate"])
def test_http_infer_compressed_body_is_read(shared: Served, encoding: str) -> None:
    rows = [1.0, 2.0] * 2000
    body = json.dumps({"inputs": [{**X, "shape": [2000, 2], "data": rows}]}).encode()
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body)}.get(encoding)
    if packed is None:
        stream = zlib.compressobj(wbits=-15)
        packed = stream.compress(body) + stream.flush()
    headers = {"Content-Encoding": encoding.rsplit(maxsplit=1)[-1], "Accept-Encoding": encoding.rsplit(maxsplit=1)[-1]}
    status, answer, answered = call(shared, "/v2/models/same/infer", packed, headers)
    assert (status, answered["content-encoding"]) == (200, encoding.rsplit(maxsplit=1)[-1])
    plain = gzip.decompress(answer) if encoding == "gzip" else zlib.decompress(answer)
    assert json.loads(plain)["outputs"][0]["data"] == rows


def test_http_infer_names_in_another_case_are_matched(served: Served) -> None:
    body = {"inputs": [{**X, "name": "X"}], "outputs": [{"name": "Y"}]}
    assert asked(served, "/v2/models/same/infer", body) == (
        200,
        {"model_name": "same", "model_version": "2", "outputs": [{**X, "name": "Y"}]},
    )


# ---- errors --------------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(64 * 1024 * 1024))
HOSTILE: dict[str, tuple[str, bytes | dict[str, Any], dict[str, str], int]] = {
    "unknown model": ("nothing", {"inputs": [X]}, {}, 404),
    "unknown version": ("same/versions/9", {"inputs": [X]}, {}, 404),
    "name of a path": ("..%2f..%2fetc", {"inputs": [X]}, {}, 404),
    "long name": ("m" * 4000, {"inputs": [X]}, {}, 404),
    "empty": ("same", b"", {}, 400),
    "not JSON": ("same", b"\x00\xff", {}, 400),
    "cut JSON": ("same", b'{"inputs": [', {}, 400),
    "list": ("same", b"[]", {}, 400),
    "null": ("same", b"null", {}, 400),
    "no inputs": ("same", {}, {}, 400),
    "deep": ("same", b'{"inputs":' + b"[" * 100_000, {}, 400),
    "surrogate": ("same", b'{"id": "\\ud800", "inputs": []}', {}, 400),
    "id of a list": ("same", {"id": [], "inputs": [X]}, {}, 400),
    "shape too large": ("same", {"inputs": [{**X, "shape": [2**31, 2**31, 2**31]}]}, {}, 400),
    "shape negative": ("same", {"inputs": [{**X, "shape": [-1, 2]}]}, {}, 400),
    "shape of text": ("same", {"inputs": [{**X, "shape": ["1", 2]}]}, {}, 400),
    "data too short": ("same", {"inputs": [{**X, "data": [1.0]}]}, {}, 400),
    "data of text": ("same", {"inputs": [{**X, "data": ["a", "b"]}]}, {}, 400),
    "datatype": ("same", {"inputs": [{**X, "datatype": "FP8"}]}, {}, 400),
    "binary without header": ("same", {"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, {}, 200),
    "binary data missing": (
        "same",
        {"inputs": [{k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": 8}}]},
        {},
        400,
    ),
    "binary size negative": (
        "same",
        {"inputs": [{k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": -8}}]},
        {},
        400,
    ),
    "binary size of text": (
        "same",
        {"inputs": [{k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": "8"}}]},
        {},
        400,
    ),
    "header length of text": ("same", {"inputs": [X]}, {"Inference-Header-Content-Length": "x"}, 400),
    "header length negative": ("same", {"inputs": [X]}, {"Inference-Header-Content-Length": "-1"}, 400),
    "header length huge": ("same", {"inputs": [X]}, {"Inference-Header-Content-Length": "9" * 5000}, 400),
    "header length short": ("same", {"inputs": [X]}, {"Inference-Header-Content-Length": "5"}, 400),
    "trailing bytes": ("same", b'{"inputs": []}tail', {"Inference-Header-Content-Length": "14"}, 400),
    "encoding unknown": ("same", {"inputs": [X]}, {"Content-Encoding": "br"}, 400),
    "encoding wrong": ("same", {"inputs": [X]}, {"Content-Encoding": "gzip"}, 400),
    "encoding cut": ("same", gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"}, 400),
    "bomb": ("same", BOMB, {"Content-Encoding": "gzip"}, 413),
    "timeout of text": ("same", {"inputs": [X], "parameters": {"timeout": "soon"}}, {}, 400),
    "timeout negative": ("same", {"inputs": [X], "parameters": {"timeout": -1}}, {}, 400),
    "timeout huge": ("same", {"inputs": [X], "parameters": {"timeout": 2**62}}, {}, 200),
    "timeout header": ("same", {"inputs": [X]}, {"grpc-timeout": "soon"}, 400),
    "parameter of a list": ("same", {"inputs": [X], "parameters": {"a": []}}, {}, 400),
    "binary_data_output of text": ("same", {"inputs": [X], "parameters": {"binary_data_output": "yes"}}, {}, 400),
    "rows that fail": ("bad", {"inputs": [X]}, {}, 422),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_http_hostile_request_gets_its_status(shared: Served, kind: str) -> None:
    model, body, headers, expected = HOSTILE[kind]
    status, answer = asked(shared, f"/v2/models/{model}/infer", body, headers)
    assert status == expected, answer
    if expected != 200:
        assert answer["error"]
        assert answer["code"]
    assert asked(shared, "/v2/models/same/infer", {"inputs": [X]})[0] == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_http_other_method_of_infer_is_refused(shared: Served, method: str) -> None:
    assert call(shared, "/v2/models/same/infer", method=method)[0] == 405


def test_http_large_body_is_refused(start: Callable[..., Served]) -> None:
    served = start(max_body_bytes=10_000)
    status, answer = asked(served, "/v2/models/same/infer", b" " * 20_000)
    assert (status, answer["code"]) == (413, "request_too_large")


def test_http_more_than_max_in_flight_gets_503(start: Callable[..., Served]) -> None:
    served = start(max_in_flight=2)
    threads = [threading.Thread(target=call, args=(served, "/v2/models/slow/infer", {"inputs": [X]})) for _ in range(2)]
    for thread in threads:
        thread.start()
    while served.gateway.service.bridge.in_flight < 2:
        time.sleep(0.01)
    status, body, headers = call(served, "/v2/models/same/infer", {"inputs": [X]})
    assert (status, json.loads(body)["code"], headers["retry-after"]) == (503, "overloaded", "1")
    served.release.set()
    for thread in threads:
        thread.join()


def test_http_more_bytes_than_may_be_held_get_503(served: Served) -> None:
    served.gateway.service._max_held_bytes = 1000
    body = json.dumps({"inputs": [X]}).encode()
    for _ in range(20):
        assert call(served, "/v2/models/same/infer", body)[0] == 200
    status, answer = asked(served, "/v2/models/same/infer", body + b" " * 1000)
    assert (status, answer["code"]) == (503, "overloaded")
    assert served.gateway.service._held_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "headers"), [({"timeout": 1000}, {}), ({}, {"grpc-timeout": "1m"})], ids=["parameter", "header"]
)
def test_http_deadline_without_answer_gets_504(
    served: Served, parameters: dict[str, Any], headers: dict[str, str]
) -> None:
    body = {"inputs": [X], "parameters": parameters}
    status, answer = asked(served, "/v2/models/slow/infer", body, headers)
    assert (status, answer["code"]) == (504, "deadline_exceeded")
    while not served.job.requests:
        time.sleep(0.01)
    assert served.job.requests[0].parameters["timeout"] == 1000


# ---- access --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic " + "k" * 16}, 401),
        ({"Authorization": "Bearer " + "k" * 16}, 200),
        ({"X-API-Key": "k" * 16}, 200),
    ],
)
def test_http_with_keys_needs_one(start: Callable[..., Served], headers: dict[str, str], status: int) -> None:
    served = start(keys=Keys(["other" * 4, "k" * 16]))
    assert call(served, "/v2/models", headers=headers)[0] == status
    assert call(served, "/v2/models/same/infer", {"inputs": [X]}, headers)[0] == status
    assert call(served, "/v2/health/live")[0] == 200


def test_http_counts_are_shown_by_model(served: Served) -> None:
    asked(served, "/v2/models/same/infer", {"inputs": [X]})
    asked(served, "/v2/models/same/infer", {"inputs": []})
    asked(served, "/v2/models/bad/infer", {"inputs": [X]})
    counts = {each["name"]: each for each in asked(served, "/v2/models/stats")[1]["model_stats"]}
    assert counts["bad"]["inference_stats"]["fail"]["count"] == 1
    stats = asked(served, "/v2/models/same/versions/2/stats")[1]["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["last_inference"] > 0


# ---- raw connections -----------------------------------------------------------------------------------------------

INFER = b"POST /v2/models/same/infer HTTP/1.1\r\nHost: a\r\n"
RAW = {
    "not HTTP": b"\x16\x03\x01\x02\x00" + bytes(600),
    "no version": b"GET /v2\r\n\r\n",
    "long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 30_000 + b"\r\n",
    "line feed in a header": b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    "length negative": INFER + b"Content-Length: -5\r\n\r\n",
    "length of text": INFER + b"Content-Length: five\r\n\r\n",
    "two lengths": INFER + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length and chunks": INFER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": INFER + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "unknown coding": INFER + b"Transfer-Encoding: magic\r\n\r\nhello",
    "length beyond the limit": INFER + b"Content-Length: 99999999999\r\n\r\n",
}


def exchange(served: Served, sent: bytes) -> bytes:
    host, _, port = served.address.partition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                received += part
    return received


@pytest.mark.parametrize("kind", RAW)
def test_http_broken_message_is_refused(shared: Served, kind: str) -> None:
    received = exchange(shared, RAW[kind])
    assert received == b"" or received.startswith(b"HTTP/1.1 4"), received[:200]
    assert asked(shared, "/v2/models/same/infer", {"inputs": [X]})[0] == 200


def test_http_cut_body_harms_nobody(served: Served) -> None:
    for _ in range(5):
        exchange(served, INFER + b"Content-Length: 1000\r\n\r\n{")
    assert asked(served, "/v2/models/same/infer", {"inputs": [X]})[0] == 200


def test_http_caller_that_hangs_up_keeps_its_place_only(served: Served) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    host, _, port = served.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            INFER.replace(b"same", b"slow") + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        )
        while served.gateway.service.bridge.in_flight < 1:
            time.sleep(0.01)
    served.release.set()
    while served.gateway.service.bridge.in_flight:
        time.sleep(0.01)
    stats = asked(served, "/v2/models/slow/stats")[1]["model_stats"][0]["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) in {(0, 1), (1, 0)}


def test_http_more_connections_than_allowed_get_503(start: Callable[..., Served]) -> None:
    served = start(max_connections=4)
    host, _, port = served.address.partition(":")
    with contextlib.ExitStack() as opened:
        for _ in range(6):
            opened.enter_context(socket.create_connection((host, int(port)), timeout=10))
        time.sleep(0.2)
        assert call(served, "/v2/health/live")[0] == 503
    assert asked(served, "/v2/health/live")[0] == 200


def events(served: Served, body: bytes, model: str = "same") -> list[Any]:
    status, answer, headers = call(served, f"/v2/models/{model}/infer_stream", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.endswith(b"\n\n")
    parts = answer.decode().removesuffix("\n\n").split("\n\n")
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_http_stream_answers_lines_in_their_order(served: Served) -> None:
    lines = [json.dumps({"id": f"{number}", "inputs": [X]}) for number in range(40)]
    lines[3] = '{"id": "3", "inputs": [{"name": "x"'
    lines[5] = json.dumps({"id": "5", "inputs": [X], "parameters": {"binary_data_output": True}})
    answers = events(served, "\n".join(lines).encode())
    assert [each.get("id") for each in answers] == [None if number == 3 else f"{number}" for number in range(40)]
    assert answers[3]["code"] == "unreadable"
    assert answers[5]["outputs"] == answers[6]["outputs"] == [{**X, "name": "y"}]
    assert served.gateway.service.statistics("same", "2")["model_stats"][0]["inference_count"] == 39


def test_http_stream_one_request_is_one_event(served: Served) -> None:
    body = json.dumps({"id": "mine", "inputs": [X]}, indent=1).encode()
    [answer] = events(served, body)
    assert (answer["id"], answer["outputs"][0]["data"]) == ("mine", X["data"])
    [failed] = events(served, body, model="bad")
    assert (failed["code"], failed["id"]) == ("inference_failed", "mine")
    assert events(served, b"")[0]["code"] == "unreadable"
    assert asked(served, "/v2/models/none/infer_stream", {"inputs": [X]})[0] == 404


def test_http_stream_first_event_comes_before_the_last_answer(served: Served) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    request = urllib.request.Request(f"{served.url}/v2/models/slow/infer_stream", b"{}\n" + body)
    with urllib.request.urlopen(request, timeout=20) as response:
        assert b"malformed_request" in response.readline()
        served.release.set()
        assert b"outputs" in response.read()


def test_http_metrics_without_flink_are_those_of_the_gateway(served: Served) -> None:
    assert call(served, "/v2/models/same/infer", {"inputs": [X]})[0] == 200
    status, text, headers = call(served, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    found = samples(text)
    assert found[("anabranch_gateway_requests_total", ("same", "success", "2"))] == 1
    assert found[("anabranch_gateway_in_flight", ())] == 0
    assert {name for name, _ in found if not name.startswith("anabranch_gateway_")} == set()


def test_http_requests_in_a_row_are_answered_in_order(served: Served) -> None:
    """Sent at once, in pieces that end anywhere, with a body larger than the bound of a head between them."""
    small, large = ({"inputs": [{**X, "shape": [rows, 2], "data": [1.0] * 2 * rows}]} for rows in (1, 20_000))
    sent = b""
    for number, body in enumerate((small, large, small)):
        encoded = json.dumps({**body, "id": str(number)}).encode()
        sent += b"POST /v2/models/same/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
            len(encoded),
            encoded,
        )
    host, _, port = served.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for at in range(0, len(sent), 50_001):
            connection.sendall(sent[at : at + 50_001])
        reader = connection.makefile("rb")
        for number in range(3):
            assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.lower().split(b": ", 1) for line in iter(reader.readline, b"\r\n"))
            answer = json.loads(reader.read(int(headers[b"content-length"])))
            assert answer["id"] == str(number)


def test_http_answer_comes_in_one_piece(served: Served) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    host, _, port = served.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(INFER + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        received = connection.recv(65_536)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(rest)["outputs"]
