"""Runs the doors of a gateway until a signal."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import uvicorn

from anabranch.errors import PortInUse, UnusableArgument
from anabranch.gateway.access import Keys
from anabranch.gateway.bridge import Bridge
from anabranch.gateway.grpc_door import GrpcDoor
from anabranch.gateway.http import HttpDoor
from anabranch.gateway.http_protocol import GatewayHttpProtocol
from anabranch.gateway.job_view import PageData
from anabranch.gateway.model_service import ModelService
from anabranch.messaging.connection import Connection
from anabranch.messaging.errors import TransportError
from anabranch.served_models import ServedModels

if TYPE_CHECKING:
    from anabranch.gateway.tracing import Tracer

_KEEP_ALIVE_S = 30
_GRACE_S = 5
_PLAIN_SECONDS = 30.0


class GatewayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a gateway.

    Attributes:
        http_port: 0 takes a free port.
        grpc_port: None for no gRPC.
        max_in_flight: Requests without answer; more are refused.
        max_connections: Connections and requests of the HTTP door; more get 503.
        max_body_bytes: Largest request.
        timeout_s: Deadline of requests without one.
        certificate, private_key: PEM files for TLS.
        client_ca: PEM file of authorities; clients must show a certificate of one.
        any_host: Serves the page under any host name, also without keys.
    """

    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int | None = None
    max_in_flight: int = 1024
    max_connections: int = 1024
    max_body_bytes: int = 16 * 1024 * 1024
    timeout_s: float = _PLAIN_SECONDS
    certificate: str | None = None
    private_key: str | None = None
    client_ca: str | None = None
    keys: Keys = Keys()
    any_host: bool = False


class Gateway:
    """One gateway.

    Args:
        page: Data of its page; None for no page.
        tracer: Makes spans; None for no tracing.

    Attributes:
        http_url, grpc_url: Known after `start`; the latter is `host:port`, or empty.
    """

    def __init__(
        self,
        options: GatewayOptions,
        connection: Connection,
        served: ServedModels,
        page: PageData | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._options = options
        self._page = page
        self._bridge = Bridge(connection, max_in_flight=options.max_in_flight)
        self.service = ModelService(self._bridge, served, timeout_s=options.timeout_s, tracer=tracer)
        self.http_url = self.grpc_url = ""
        self._grpc: GrpcDoor | None = None

    async def start(self) -> None:
        """Open the doors.

        Raises:
            PortInUse: Another process listens there.
        """
        options = self._options
        listener = _listen(options.host, options.http_port)
        port = listener.getsockname()[1]
        self._bridge.start()
        door = HttpDoor(
            self.service,
            options.keys,
            max_body_bytes=options.max_body_bytes,
            data=self._page,
            any_host=options.any_host,
        )
        config = uvicorn.Config(
            door.app(),
            http=GatewayHttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            log_level="warning",
            server_header=False,
            limit_concurrency=options.max_connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
            **_tls(options),
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.ensure_future(self._server._serve([listener]))  # noqa: SLF001 - `serve` takes signals
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)
        scheme = "https" if options.certificate else "http"
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.http_url = f"{scheme}://{host}:{port}"
        if options.grpc_port is not None:
            await self._open_grpc(host, options.grpc_port)

    async def _open_grpc(self, host: str, port: int) -> None:
        options = self._options
        door = GrpcDoor(
            self.service, options.keys, max_body_bytes=options.max_body_bytes, max_calls=options.max_connections
        )
        try:
            taken = await door.start(f"{host}:{port}", _credentials(options))
        except OSError:
            await self.close()
            raise PortInUse(port, "--grpc-port") from None
        self._grpc, self.grpc_url = door, f"{host}:{taken}"

    async def failure(self) -> TransportError | None:
        """Wait until Kafka can be read or written no longer, and return the reason."""
        return await self._bridge.failure()

    async def close(self) -> None:
        """Close the doors, and end pending requests."""
        self._server.should_exit = True
        await self._bridge.close()
        if self._grpc is not None:
            await self._grpc.close(_GRACE_S)
        with suppress(asyncio.CancelledError):
            await self._serving
        if self._page is not None:
            await asyncio.to_thread(self._page.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, "--http-port") from None
        raise UnusableArgument(f"cannot listen on {host}:{port} ({error.strerror}): choose another address") from None
    return listener


def _tls(options: GatewayOptions) -> dict[str, Any]:
    if not options.certificate:
        return {}
    import ssl  # noqa: PLC0415 - only with TLS

    return {
        "ssl_certfile": options.certificate,
        "ssl_keyfile": options.private_key,
        "ssl_ca_certs": options.client_ca,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if options.client_ca else ssl.CERT_NONE,
    }


def _credentials(options: GatewayOptions) -> grpc.ServerCredentials | None:
    if not options.certificate or not options.private_key:
        return None
    pair = (Path(options.private_key).read_bytes(), Path(options.certificate).read_bytes())
    authorities = Path(options.client_ca).read_bytes() if options.client_ca else None
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


async def serve(gateway: Gateway, ready: Callable[[], None], until: Callable[[], Awaitable[object]]) -> None:
    """Serve until an awaitable ends.

    Raises:
        TransportError: Kafka can be read or written no longer.
    """
    await gateway.start()
    ready()
    end, failure = asyncio.ensure_future(until()), asyncio.ensure_future(gateway.failure())
    try:
        await asyncio.wait((end, failure), return_when=asyncio.FIRST_COMPLETED)
        if failure.done() and (reason := failure.result()) is not None:
            raise reason
    finally:
        end.cancel()
        failure.cancel()
        await gateway.close()
