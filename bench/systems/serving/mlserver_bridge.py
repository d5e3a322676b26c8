"""A peer: MLServer with adaptive batching, behind a consumer and a producer on confluent-kafka.

    Kafka --> [ bridge: gRPC ModelInfer ] --> [ MLServer: adaptive batching, session.run ] --> [ bridge ] --> Kafka

Settings: gRPC with unparsed Kafka values; 128 requests in flight; batches of at most 64 that wait 5 ms at most; no
parallel workers; sessions on one thread; no metrics, no access log.
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.harness.messages import ServeCommand
from bench.systems.onnx_session import has_open_rows, open_session
from bench.systems.serving.kafka_bridge import carry

_MAX_ROWS = 64
_MAX_WAIT_S = 0.005
_IN_FLIGHT = 128
_READY_TIMEOUT_S = 60.0
_METHOD = "/inference.GRPCInferenceService"


def run(command: ServeCommand) -> None:
    """Serve until this process is stopped."""
    with serving(Path(command.repository)) as (_, port):
        asyncio.run(_serve(command, port))


@contextmanager
def serving(repository: Path) -> Iterator[tuple[int, int]]:
    """Start MLServer, which ends with the block; yield the ports of its HTTP and gRPC."""
    with tempfile.TemporaryDirectory(prefix="mlserver-") as folder:
        ports = write_settings(Path(folder), repository)
        # The server ends with this process.
        tie = [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL"]
        server = subprocess.Popen([*tie, str(Path(sys.executable).with_name("mlserver")), "start", folder])
        try:
            yield ports
        finally:
            server.kill()
            server.wait()


def write_settings(folder: Path, repository: Path) -> tuple[int, int]:
    """Write what MLServer reads, for every model of a repository, and return the ports of its HTTP and gRPC."""
    http_port, grpc_port = free_ports()
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "parallel_workers": 0,
        "metrics_endpoint": None,
    }
    (folder / "settings.json").write_bytes(msgspec.json.encode(settings))
    for path in repository.glob("*/*/model.onnx"):
        name = path.parent.parent.name
        model: dict[str, object] = {
            "name": name,
            "implementation": "bench.systems.serving.mlserver_runtime.OnnxModel",
            "parameters": {"uri": str(path)},
        }
        # It joins inputs whatever their shapes.
        if not has_open_rows(open_session(path)):
            model |= {"max_batch_size": _MAX_ROWS, "max_batch_time": _MAX_WAIT_S}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_bytes(msgspec.json.encode(model))
    return http_port, grpc_port


async def _serve(command: ServeCommand, port: int) -> None:
    import grpc  # noqa: PLC0415 - its own environment's

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        # It listens once its models are loaded.
        await channel.unary_unary(f"{_METHOD}/ServerReady")(b"", timeout=_READY_TIMEOUT_S, wait_for_ready=True)
        infer = channel.unary_unary(f"{_METHOD}/ModelInfer")

        async def ask(message: bytes) -> tuple[None, bytes]:
            return None, await infer(message)

        await carry(command, ask, _IN_FLIGHT)


def free_ports() -> tuple[int, int]:
    """Return two ports that are free."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
