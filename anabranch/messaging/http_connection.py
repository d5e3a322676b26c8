"""The connection of a client to a gateway over HTTP: protobuf in both directions."""

from __future__ import annotations

import http.client
import queue
import ssl
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from anabranch.messaging.connection import Headers
from anabranch.messaging.errors import GatewayRefused, GatewayUnreachable
from anabranch.schemas.errors import AnabranchError
from anabranch.served_models import ServedModels

PROTOBUF = "application/x-protobuf"
_THREADS = 64


class HttpConnection:
    """A `Connection` over HTTP; each of its threads keeps a connection open.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT` of a gateway.
        api_key: Key of the gateway.
        tls: TLS of `https`; the system's authorities by default.
    """

    sends_at_once = False

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 30.0, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = tls or ssl.create_default_context() if parts.scheme == "https" else None
        self._url = url
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._answers: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(_THREADS, "anabranch-http")
        self._own = threading.local()
        self._call("GET", "/v2/health/live")

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        """Post a request on another thread."""

        def post() -> None:
            try:
                self._answers.put((key, self._call("POST", "/v2/infer", message, headers)))
            except AnabranchError as error:
                fail(error)

        self._threads.submit(post)

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        """Return the next answer."""
        try:
            yield self._answers.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            return

    def served_models(self) -> ServedModels:
        """Ask the gateway for its models."""
        models = ServedModels()
        models.update("", self._call("GET", "/v2/models.json"))
        return models

    def close_sender(self) -> None:
        """Drop requests that were not posted."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close_receiver(self) -> None:
        """Nothing is left to close."""

    def _call(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> bytes:
        try:
            return self._ask(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._own.connection = None
            raise GatewayUnreachable(f"no gateway answers at {self._url} ({error}): is it running?") from error

    def _ask(self, method: str, path: str, body: bytes | None, more: Headers) -> bytes:
        headers: dict[str, str | bytes] = {**self._headers, "Content-Type": PROTOBUF, **dict(more)}
        kept = getattr(self._own, "connection", None)
        connection = kept or self._connect()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            # The gateway closes connections that were idle.
            if kept is None:
                raise
            connection = self._connect()
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        content = response.read()
        self._own.connection = None if response.will_close else connection
        if response.status != 200 and response.headers.get_content_type() != PROTOBUF:
            raise GatewayRefused(f"the gateway at {self._url} answered {response.status}: {content[:200]!r}")
        return content

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
