"""Asks the job over Kafka, for the event loop of a gateway.

    event loop --> sender thread --> requests topic --> job --> own partition --> receiver thread --> event loop

A connection that sends without waiting does so in the event loop.
A request keeps its place until its answer comes or its time is over, also if its caller has gone: the job has it.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from functools import partial

from anabranch.messaging.connection import Connection
from anabranch.messaging.errors import ClientClosed, NoAnswer, TransportError
from anabranch.schemas.errors import AnabranchError, Overloaded
from anabranch.schemas.wire.protobuf_wire import write_id

_TICK_S = 0.1
_POLL_MS = 100


class Bridge:
    """The requests of one gateway.

    Args:
        connection: Connection that only this bridge uses.
        max_in_flight: Requests without answer; more are refused.
    """

    def __init__(self, connection: Connection, *, max_in_flight: int) -> None:
        self._connection = connection
        self._max_in_flight = max_in_flight
        self._prefix = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
        self._pending: dict[bytes, tuple[asyncio.Future[bytes], float]] = {}
        self._outbox: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._failure: TransportError | None = None
        self._failed = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Requests without answer."""
        return len(self._pending)

    @property
    def is_alive(self) -> bool:
        """True while answers are read."""
        return self._failure is None

    def start(self) -> None:
        """Start the threads, inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=work, name=f"anabranch-gateway-{work.__name__.strip('_')}", daemon=True)
            for work in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()
        self._sweeper = self._loop.create_task(self._sweep())

    async def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Send an encoded `ModelInferRequest` under an id of the gateway, and return the answer.

        Raises:
            Overloaded: Too many requests have no answer.
            TransportError: No answer came.
        """
        if self._failure is not None:
            raise self._failure
        if len(self._pending) >= self._max_in_flight:
            raise Overloaded(f"{len(self._pending)} requests wait for answers, the limit: send the request again later")
        key = f"{self._prefix}-{next(self._numbers):x}".encode()
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[key] = future, time.monotonic() + timeout_s
        self._hand_over(message + write_id(key), key)
        return await future

    def _hand_over(self, message: bytes, key: bytes) -> None:
        if not self._connection.sends_at_once:
            self._outbox.put((message, key))
            return
        try:
            self._connection.send(message, key, partial(self._fail_later, key))
        except Exception as error:  # noqa: BLE001 - as in the thread
            self._fail(error, "requests cannot be sent")

    def _fail_later(self, key: bytes, error: AnabranchError) -> None:
        self._loop.call_soon_threadsafe(self._settle, [(key, error)])

    async def failure(self) -> TransportError | None:
        """Wait until a thread ends by itself, and return its reason."""
        await self._failed.wait()
        return self._failure

    async def close(self) -> None:
        """End threads and pending requests."""
        self._sweeper.cancel()
        self._fail_all(ClientClosed("the gateway stops: send the request again"))
        self._outbox.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _send(self) -> None:
        try:
            while (item := self._outbox.get()) is not None:
                message, key = item
                self._connection.send(message, key, partial(self._fail_later, key))
        except Exception as error:  # noqa: BLE001 - without this thread no request would ever leave
            self._loop.call_soon_threadsafe(self._fail, error, "requests cannot be sent")
        finally:
            self._connection.close_sender()

    def _receive(self) -> None:
        try:
            while self._failure is None:
                answers = [(key, value) for key, value in self._connection.receive(_POLL_MS) if key in self._pending]
                if answers:
                    self._loop.call_soon_threadsafe(self._settle, answers)
        except Exception as error:  # noqa: BLE001 - without this thread no request would ever end
            self._loop.call_soon_threadsafe(self._fail, error, "answers cannot be read")
        finally:
            self._connection.close_receiver()

    def _settle(self, outcomes: Iterable[tuple[bytes | None, bytes | AnabranchError]]) -> None:
        for key, outcome in outcomes:
            pending = self._pending.pop(key or b"", None)
            if pending is None or pending[0].done():
                continue
            if isinstance(outcome, bytes):
                pending[0].set_result(outcome)
            else:
                pending[0].set_exception(outcome)

    def _fail(self, error: Exception, what: str) -> None:
        self._fail_all(error if isinstance(error, TransportError) else TransportError(f"{what}: {error}"))
        self._failed.set()

    def _fail_all(self, reason: TransportError) -> None:
        self._failure = self._failure or reason
        self._settle([(key, reason) for key in list(self._pending)])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            late = NoAnswer("no answer in time: is the job running (anabranch status)? Raise the request's timeout")
            self._settle([(key, late) for key, (_, until_s) in list(self._pending.items()) if until_s <= now_s])
