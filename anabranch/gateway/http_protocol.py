"""HTTP/1.1 on a connection of the gateway: uvicorn's quick parser, with a bound for the head of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, cast

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Request line and headers.
MAX_HEAD_BYTES = 64 * 1024
#: Bytes of a header beside name and value.
_AROUND = 4
_VERSIONS = ("1.0", "1.1")
#: Key of a request's scope.
_CONNECTION = "anabranch.connection"
_HEAD, _END = b"HTTP/1.1 ", b"\r\n\r\n"
_REFUSED = "Invalid HTTP request received."


class GatewayHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = self._is_refused = self._is_lost = False
        #: Waits for an answer.
        self._waiting: asyncio.Task[Any] | None = None
        #: Of the head, after the data in which it began.
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(cast("asyncio.Transport", _Joining(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for an answer."""
        self._is_lost = True
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    async def unless_lost(self, asking: Awaitable[bytes]) -> bytes:
        """Return an answer, or raise ClientDisconnect when the caller hangs up."""
        self._waiting = waiting = asyncio.current_task()
        try:
            return await asking
        except asyncio.CancelledError:
            if not self._is_lost or waiting is None:
                raise
            waiting.uncancel()
            raise ClientDisconnect from None
        finally:
            self._waiting = None

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head without end."""
        if self._is_refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        """Expect a head."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[_CONNECTION] = self

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large, or of another version."""
        self._is_in_head = False
        size = len(self.url) + sum([len(name) + len(value) + _AROUND for name, value in self.headers])
        if size > MAX_HEAD_BYTES or self.parser.get_http_version() not in _VERSIONS:
            self._refuse()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        if not self._is_refused:
            super().on_message_complete()

    def _refuse(self) -> None:
        if not self._is_refused and not self.transport.is_closing():
            self._is_refused = True
            self.send_400_response(_REFUSED)


class _Joining:
    """A transport that sends the head of an answer with its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD) and data.endswith(_END):
            self._head = data
            # The body may come later.
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def unless_gone(scope: Mapping[str, Any], asking: Awaitable[bytes]) -> bytes:
    """Return the answer to the request of a scope, or raise ClientDisconnect when the caller hangs up."""
    connection: GatewayHttpProtocol = scope[_CONNECTION]
    return await connection.unless_lost(asking)
