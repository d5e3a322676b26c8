"""A TCP proxy whose connections can be cut, silenced, slowed, and halved.

client -- up --> [ proxy ] -- up --> server
client <- down - [ proxy ] <- down -- server
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

Weather = Literal["fair", "cut", "silent", "slow", "no-up", "no-down"]

CHUNK_BYTES = 64 * 1024
SLOW_LATENCY_S = 0.15
SLOW_BYTES_PER_S = 256 * 1024
#: Directions that let nothing pass.
_CLOSED: dict[Weather, frozenset[str]] = {
    "silent": frozenset({"up", "down"}),
    "no-up": frozenset({"up"}),
    "no-down": frozenset({"down"}),
}


class TcpProxy:
    """Forwards one port of the loopback interface to another, in a thread of its own.

    Attributes:
        hit: Connections that were cut or refused, and pieces of data that were withheld or slowed.
    """

    def __init__(self, port: int, target_port: int) -> None:
        """Start nothing yet."""
        self.port = port
        self._target_port = target_port
        self._weather: Weather = "fair"
        self.hit = 0
        self._loop = asyncio.new_event_loop()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)

    def __enter__(self) -> Self:
        """Starts listening."""
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes all connections."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def set(self, weather: Weather) -> None:
        """Changes what happens to present and new connections."""
        self._call(self._set(weather))

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        await self._set("fair")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop(self) -> None:
        assert self._server
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, weather: Weather) -> None:
        self._weather = weather
        for direction, gate in self._open.items():
            if direction in _CLOSED.get(weather, frozenset()):
                gate.clear()
            else:
                gate.set()
        if weather == "cut":
            for writer in list(self._writers):
                self.hit += 1
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            # Either side ended, or the proxy did.
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._weather == "cut":
            self.hit += 1
            _reset(writer)
            return
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        ends = {writer, target_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump("up", reader, target_writer), self._pump("down", target_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            gate = self._open[direction]
            if not gate.is_set():
                self.hit += 1
                await gate.wait()
            if self._weather == "slow":
                self.hit += 1
                await asyncio.sleep(SLOW_LATENCY_S + len(data) / SLOW_BYTES_PER_S)
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            # An end of one direction goes on to the other side.
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST instead of FIN."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
