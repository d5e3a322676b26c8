"""The client of doors: what it sends, and which answers count."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from bench.harness.door_load import DoorFailed, DoorLog, measure
from bench.harness.messages import DoorCommand, DoorProtocol
from bench.workloads.workload import Workload, id_of

Answer = Callable[[bytes, bytes], bytes]


def workload(count: int = 4) -> Workload:
    """Requests of one row of two values; the answer is the row and one more."""
    rows = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    messages = []
    for row in rows:
        request = ModelInferRequest(model_name="m", id=id_of(0).decode().replace("0", "@"))
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(row.tobytes())
        messages.append(request.SerializeToString())
    return Workload("rows", [np.frombuffer(message, np.uint8) for message in messages], [*(rows + 1)])


def row_of(body: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(ModelInferRequest.FromString(body).raw_input_contents[0], np.float32)


def in_protobuf(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    response = ModelInferResponse()
    response.raw_output_contents.append(values.tobytes())
    return response.SerializeToString()


@asynccontextmanager
async def server(answer: Answer, status: str = "200 OK") -> AsyncIterator[tuple[str, list[int]]]:
    """An HTTP server; yields its address, and the number of requests under way at each answer."""
    under_way: list[int] = [0]
    seen: list[int] = []

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                size = int(asked.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                under_way[0] += 1
                seen.append(under_way[0])
                await asyncio.sleep(0.002)
                under_way[0] -= 1
                answered = answer(asked, body)
                head = f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: 1\r\nContent-Length: {len(answered)}"
                writer.write(f"{head}\r\n\r\n".encode() + answered[:5])
                await writer.drain()
                writer.write(answered[5:])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        host, port = listening.sockets[0].getsockname()
        try:
            yield f"{host}:{port}", seen
        finally:
            for writer in writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


def asked(
    answer: Answer,
    protocol: DoorProtocol = "HTTP, protobuf",
    status: str = "200 OK",
    offsets_path: str | None = None,
    seconds: float = 0.3,
) -> tuple[DoorLog, list[int]]:
    async def run() -> tuple[DoorLog, list[int]]:
        async with server(answer, status) as (address, seen):
            command = DoorCommand(
                address=address,
                protocol=protocol,
                workload_path="",
                connections=3,
                warm_up_s=0.05,
                seconds=seconds,
                out_path="",
                offsets_path=offsets_path,
            )
            return await measure(command, workload()), seen

    return asyncio.run(run())


def test_closed_loop_keeps_one_request_on_each_connection() -> None:
    log, seen = asked(lambda _, body: in_protobuf(row_of(body) + 1))
    assert max(seen) == 3
    assert 3 < len(log.latencies_ms) <= len(seen), "answers of the warm-up do not count"
    assert log.deviations.max() == 0
    assert log.latencies_ms.min() >= 2
    assert 0 <= log.ended_s.min() <= log.ended_s.max() <= 0.3


def test_answers_that_differ_are_seen() -> None:
    log, _ = asked(lambda _, body: in_protobuf(row_of(body) + (1 if row_of(body)[0] else 3)))
    assert set(log.deviations) == {0.0, 2.0}
    log, _ = asked(lambda _, body: in_protobuf(row_of(body)[:1]))
    assert set(log.deviations) == {np.inf}


@pytest.mark.parametrize("protocol", ["HTTP, binary", "HTTP, JSON"])
def test_requests_over_http_are_those_of_the_protocol(protocol: DoorProtocol) -> None:
    def answer(head: bytes, body: bytes) -> bytes:
        assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
        size = (
            int(head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0]) if b"Inference" in head else None
        )
        request = msgspec.json.decode(body[:size])
        [tensor] = request["inputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "FP32", [1, 2])
        if size is None:
            return msgspec.json.encode({"outputs": [{"data": [value + 1 for value in tensor["data"]]}]})
        assert tensor["parameters"] == {"binary_data_size": len(body) - size}
        return b'{"outputs": []}' + (np.frombuffer(body[size:], np.float32) + 1).tobytes()

    log, _ = asked(answer, protocol)
    assert len(log.deviations) > 3
    assert log.deviations.max() == 0


def test_schedule_sends_each_request_at_its_time(tmp_path: Path) -> None:
    """Also more than there are connections: the wait for one counts."""
    path = tmp_path / "offsets.npy"
    np.save(path, np.array([0, 100, 100, 100, 100, 100, 100, 100], np.int64) * 1_000_000)
    log, seen = asked(lambda _, body: in_protobuf(row_of(body) + 1), offsets_path=str(path))
    assert len(seen) == 8
    assert len(log.latencies_ms) == 7, "the first one is of the warm-up"
    assert log.latencies_ms.max() >= log.latencies_ms.min() + 4
    assert log.ended_s.min() >= 0.05


def test_error_of_a_server_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        asked(lambda *_: b"overloaded", status="503 Service Unavailable")
    assert caught.group_contains(DoorFailed, match="503 Service Unavailable")


def test_connection_that_a_server_closes_ends_the_run() -> None:
    def fail(_: bytes, __: bytes) -> bytes:
        raise ConnectionError

    with pytest.raises(ExceptionGroup) as caught:
        asked(fail)
    assert caught.group_contains(DoorFailed, match="closed the connection")
