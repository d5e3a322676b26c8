"""A connection to a job whose topics may not exist yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from anabranch.messaging.errors import NotSent, TopicMissing
from anabranch.schemas.errors import AnabranchError

if TYPE_CHECKING:
    from anabranch.messaging.connection import Connection, Headers
    from anabranch.served_models import ServedModels

_RETRY_S = 1.0


class AwaitedConnection:
    """A `Connection` that opens once a job has published a model; until then, requests fail.

    Args:
        connect: Opens it, or raises `TopicMissing`. Called at once, then by the thread that receives.
        served: Models that jobs have published.
    """

    def __init__(self, connect: Callable[[], Connection], served: ServedModels) -> None:
        self._connect = connect
        self._served = served
        self._connection: Connection | None = None
        self._missing = ""
        self._retry_s = 0.0
        self._try()

    @property
    def sends_at_once(self) -> bool:
        """See `Connection`."""
        return self._connection is None or self._connection.sends_at_once

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        """Send a request, or fail it."""
        if self._connection is None:
            fail(NotSent(f"{self._missing}; send the request again later"))
        else:
            self._connection.send(message, key, fail, headers)

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        """Return new answers."""
        if self._connection is None:
            time.sleep(timeout_ms / 1000)
            if not self._served.models or time.monotonic() < self._retry_s:
                return ()
            self._try()
            return ()
        return self._connection.receive(timeout_ms)

    def served_models(self) -> ServedModels:
        """Return the models that jobs have published."""
        return self._served

    def close_sender(self) -> None:
        """End the sending half."""
        if self._connection is not None:
            self._connection.close_sender()

    def close_receiver(self) -> None:
        """End the receiving half."""
        if self._connection is not None:
            self._connection.close_receiver()

    def _try(self) -> None:
        try:
            self._connection = self._connect()
        except TopicMissing as error:
            self._missing = error.message
            self._retry_s = time.monotonic() + _RETRY_S
