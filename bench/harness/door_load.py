"""A client of a server's doors: keeps requests under way, or sends them by a schedule.

    python -m bench.harness.door_load COMMAND

Decoding and comparing wait until the last answer: they would disturb the times.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter_ns
from typing import Self, cast

import grpc
import msgspec
import numpy as np
import numpy.typing as npt

from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.schemas.tensors import Array
from bench.harness.messages import DoorCommand
from bench.workloads.workload import Workload

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "INT32": np.int32}
_PATH = "/v2/models/{model}/infer"
_OK, _LENGTH, _END = b"http/1.1 200", b"\r\ncontent-length:", b"\r\n\r\n"
#: Time for the answers after the last request.
_PATIENCE_S = 60.0

#: Sends the request with a number, and returns the body of its answer.
Ask = Callable[[int], Awaitable[bytes]]


class DoorFailed(Exception):
    """A server closed a connection, or answered with an error."""


@dataclass(frozen=True)
class DoorLog:
    """The answers of one run.

    Attributes:
        latencies_ms: From the scheduled time, or in a closed loop from the sending.
        ended_s: Times after the start of the measurement.
        deviations: From a direct run; infinite for an answer of another size.
    """

    latencies_ms: npt.NDArray[np.float64]
    ended_s: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write the answers for another process."""
        np.savez(path, latencies_ms=self.latencies_ms, ended_s=self.ended_s, deviations=self.deviations)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file of `save`."""
        with np.load(path) as file:
            return cls(**file)


def main() -> None:
    """Ask, compare and save."""
    command = DoorCommand.from_arguments()
    workload = Workload.load(Path(command.workload_path))
    asyncio.run(measure(command, workload)).save(Path(command.out_path))


async def measure(command: DoorCommand, workload: Workload) -> DoorLog:
    """Open the connections, ask, and compare.

    Raises:
        DoorFailed: See there; `grpc.aio.AioRpcError` likewise.
        TimeoutError: Answers are missing.
    """
    answers: list[tuple[int, int, int, bytes]] = []
    async with AsyncExitStack() as opened:
        doors = [await _open(command, workload, opened) for _ in range(command.connections)]
        begin_ns = await _ask_all(command, doors, answers)
    end_ns = begin_ns + round(command.seconds * 1e9)
    reader = _READERS[command.protocol]
    # In a closed loop an answer counts by its own time, else by that of its request.
    counted = [
        (number, since_ns, ended_ns, reader(body, workload.answer(number).size))
        for number, since_ns, ended_ns, body in answers
        if begin_ns <= (ended_ns if command.offsets_path is None else since_ns) < end_ns
    ]
    return DoorLog(
        np.array([(ended_ns - since_ns) / 1e6 for _, since_ns, ended_ns, _ in counted]),
        np.array([(ended_ns - begin_ns) / 1e9 for _, _, ended_ns, _ in counted]),
        np.array([_deviation(answer, workload.answer(number)) for number, _, _, answer in counted]),
    )


async def _ask_all(command: DoorCommand, doors: list[Ask], answers: list[tuple[int, int, int, bytes]]) -> int:
    """Ask; return the time at which the measurement began."""
    begin_ns = perf_counter_ns() + round(command.warm_up_s * 1e9)
    async with asyncio.timeout(command.warm_up_s + command.seconds + _PATIENCE_S):
        if command.offsets_path is None:
            await _keep_asking(doors, begin_ns + round(command.seconds * 1e9), answers)
        else:
            start_ns = begin_ns - round(command.warm_up_s * 1e9)
            await _ask_by_schedule(doors, [start_ns + offset for offset in np.load(command.offsets_path)], answers)
    return begin_ns


async def _keep_asking(doors: list[Ask], end_ns: int, answers: list[tuple[int, int, int, bytes]]) -> None:
    numbers = count()

    async def work(ask: Ask) -> None:
        while (since_ns := perf_counter_ns()) < end_ns:
            number = next(numbers)
            body = await ask(number)
            answers.append((number, since_ns, perf_counter_ns(), body))

    async with asyncio.TaskGroup() as group:
        for door in doors:
            group.create_task(work(door))


async def _ask_by_schedule(doors: list[Ask], due: list[int], answers: list[tuple[int, int, int, bytes]]) -> None:
    free: asyncio.Queue[Ask] = asyncio.Queue()
    for door in doors:
        free.put_nowait(door)

    async def work(number: int, due_ns: int) -> None:
        ask = await free.get()
        body = await ask(number)
        answers.append((number, due_ns, perf_counter_ns(), body))
        free.put_nowait(ask)

    async with asyncio.TaskGroup() as group:
        for number, due_ns in enumerate(due):
            await asyncio.sleep(max(0.0, (due_ns - perf_counter_ns()) / 1e9))
            group.create_task(work(number, due_ns))


def _deviation(answer: Array, expected: Array) -> float:
    return float(np.abs(answer - expected.ravel()).max()) if answer.size == expected.size else float("inf")


async def _open(command: DoorCommand, workload: Workload, opened: AsyncExitStack) -> Ask:
    if command.protocol == "gRPC":
        # A connection of its own.
        channel = grpc.aio.insecure_channel(command.address, options=[("grpc.use_local_subchannel_pool", 1)])
        opened.push_async_callback(channel.close)
        infer = channel.unary_unary(_METHOD)
        await channel.channel_ready()

        async def ask(number: int) -> bytes:
            body: bytes = await infer(workload.message(number))
            return body

        return ask
    host, _, port = command.address.rpartition(":")
    transport, connection = await asyncio.get_running_loop().create_connection(DoorConnection, host, int(port))
    opened.callback(transport.close)
    requests = [_http_request(command, workload.message(number)) for number in range(len(workload.requests))]

    async def ask_http(number: int) -> bytes:
        return await connection.ask(requests[number % len(requests)])

    return ask_http


def _http_request(command: DoorCommand, message: bytes) -> bytes:
    request = ModelInferRequest.FromString(message)
    tensors = list(zip(request.inputs, request.raw_input_contents, strict=True))
    heads = [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each, _ in tensors]
    headers = f"POST {_PATH.format(model=request.model_name)} HTTP/1.1\r\nHost: {command.address}\r\n"
    if command.protocol == "HTTP, binary":
        inputs = [
            head | {"parameters": {"binary_data_size": len(raw)}} for head, (_, raw) in zip(heads, tensors, strict=True)
        ]
        text = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
        headers += f"Inference-Header-Content-Length: {len(text)}\r\n"
        message = b"".join((text, *request.raw_input_contents))
    elif command.protocol == "HTTP, JSON":
        inputs = [
            head | {"data": np.frombuffer(raw, _DTYPES[each.datatype]).tolist()}
            for head, (each, raw) in zip(heads, tensors, strict=True)
        ]
        message = msgspec.json.encode({"inputs": inputs})
        headers += "Content-Type: application/json\r\n"
    return f"{headers}Content-Length: {len(message)}\r\n\r\n".encode() + message


class DoorConnection(asyncio.Protocol):
    """A connection of HTTP with one request at a time."""

    _transport: asyncio.Transport
    _received = b""
    _waiting: "asyncio.Future[bytes] | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        """Send a request; return the future body of its answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        received = self._received = self._received + data
        end, waiting = received.find(_END), self._waiting
        if end < 0 or waiting is None or waiting.done():
            return
        head = received[:end].lower()
        _, length, rest = head.partition(_LENGTH)
        if not head.startswith(_OK) or not length:
            waiting.set_exception(DoorFailed(received[:500].decode(errors="replace")))
        elif len(body := received[end + len(_END) :]) >= int(rest.split(b"\r\n", 1)[0]):
            self._received = b""
            waiting.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(DoorFailed(f"the server closed the connection: {exc}"))


def _of_protobuf(body: bytes, _: int) -> Array:
    return np.frombuffer(ModelInferResponse.FromString(body).raw_output_contents[0], np.float32)


def _of_binary(body: bytes, values: int) -> Array:
    return np.frombuffer(body[-values * 4 :], np.float32)


def _of_json(body: bytes, _: int) -> Array:
    return np.array(msgspec.json.decode(body)["outputs"][0]["data"], np.float32).ravel()


_READERS: dict[str, Callable[[bytes, int], Array]] = {
    "gRPC": _of_protobuf,
    "HTTP, protobuf": _of_protobuf,
    "HTTP, binary": _of_binary,
    "HTTP, JSON": _of_json,
}

if __name__ == "__main__":
    main()
