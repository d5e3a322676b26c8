"""Peers that answer at doors of their own: `python -m bench.systems.serving.doors COMMAND`."""

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from bench.harness.messages import ServeDoorsCommand
from bench.systems.direct_models import DirectModels
from bench.systems.serving.mlserver_bridge import free_ports, serving
from bench.systems.serving.ray_serve import running_ray

_MAX_ROWS = 64
_MOST_REQUESTS = 512
#: Of the gRPC messages, which replicas parse themselves.
_SERVICE, _METHOD = "inference.GRPCInferenceService", "ModelInfer"


def run(command: ServeDoorsCommand) -> None:
    """Serve until this process is stopped."""
    if command.kind == "MLServer":
        _run_mlserver(command)
    else:
        _run_ray(command)


def _run_mlserver(command: ServeDoorsCommand) -> None:
    with serving(Path(command.repository)) as (http_port, grpc_port):
        import grpc  # noqa: PLC0415 - its own environment's

        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            # It listens once its models are loaded.
            channel.unary_unary(f"/{_SERVICE}/ServerReady")(b"", timeout=60, wait_for_ready=True)
        _tell(command, http_port, grpc_port)
        asyncio.run(asyncio.Event().wait())


def _run_ray(command: ServeDoorsCommand) -> None:
    # Read when Ray is imported.
    os.environ |= {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    http_port, grpc_port = free_ports()
    with running_ray(num_cpus=4):
        from ray import serve  # noqa: PLC0415

        serve.start(
            http_options={"host": "127.0.0.1", "port": http_port, "access_log": False},
            grpc_options={
                "port": grpc_port,
                "grpc_servicer_functions": ["bench.systems.serving.doors.add_service"],
            },
        )
        serve.run(_application(command.repository), name="peer", route_prefix="/")
        _tell(command, http_port, grpc_port)
        asyncio.run(asyncio.Event().wait())


def _application(repository: str) -> Any:
    from ray import serve  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import Response  # noqa: PLC0415

    @serve.deployment(max_ongoing_requests=_MOST_REQUESTS, ray_actor_options={"num_cpus": 1})
    class DoorReplica:
        def __init__(self) -> None:
            self._models = DirectModels(Path(repository))

        @serve.batch(max_batch_size=_MAX_ROWS, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
        async def _answer(self, messages: list[bytes]) -> list[bytes]:
            return [answer for _, answer in self._models.answer_batch(messages)]

        async def __call__(self, request: Request) -> Response:
            return Response(await self._answer(await request.body()))

        async def ModelInfer(self, request: bytes) -> Encoded:  # noqa: N802 - the protocol's name
            return Encoded(await self._answer(request))

    return DoorReplica.bind()  # type: ignore[attr-defined]


class Encoded:
    """A message that is encoded already."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    def SerializeToString(self) -> bytes:  # noqa: N802 - as Ray calls it
        """Return it."""
        return self._message


def add_service(servicer: Any, server: Any) -> None:
    """Add the method of inference to a gRPC server of Ray, without parsing messages."""
    import grpc  # noqa: PLC0415

    handlers = {_METHOD: grpc.unary_unary_rpc_method_handler(getattr(servicer, _METHOD))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def _tell(command: ServeDoorsCommand, http_port: int, grpc_port: int) -> None:
    path = Path(command.ready_path)
    text = msgspec.json.encode({"http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}"})
    path.with_suffix(".new").write_bytes(text)
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    run(ServeDoorsCommand.from_arguments())
