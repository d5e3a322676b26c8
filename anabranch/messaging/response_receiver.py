"""The receiving half of a client: one thread that hands every answer to its future.

It skips records of other clients and repeated answers by their key, without decoding them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from anabranch.messaging.connection import Connection
from anabranch.messaging.errors import ClientClosed, NoAnswer, TransportError
from anabranch.result import Result
from anabranch.schemas.errors import AnabranchError, error_with_code
from anabranch.schemas.messages import ErrorResponse
from anabranch.schemas.wire import codec

_Outcome = Result | Exception

#: Interval at which the thread looks for expired requests.
_TICK_MS = 100


@dataclass(frozen=True)
class PendingRequest:
    """A request without an answer.

    Attributes:
        sent_s: Time of `submit`, on the monotonic clock.
    """

    future: Future[Result]
    sent_s: float
    timeout_s: float
    model: str


class ResponseReceiver:
    """The pending requests of a client, and the thread that answers them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: dict[bytes, PendingRequest] = {}
        self._lock = threading.Lock()
        self._end_reason: TransportError | None = None
        self._thread = threading.Thread(target=self._receive, name="anabranch-answers", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> threading.Thread:
        """The thread that ends futures, and runs their callbacks."""
        return self._thread

    def expect(self, request_id: bytes, pending: PendingRequest) -> None:
        """Add a request. Call it before sending, so that no answer comes first.

        Raises:
            TransportError: The receiver has ended.
        """
        with self._lock:
            if self._end_reason is not None:
                raise self._end_reason
            self._pending[request_id] = pending

    def settle(self, request_id: bytes, outcome: _Outcome) -> None:
        """End a request, if it is still pending."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            _end(pending.future, outcome)

    def close(self) -> None:
        """End the thread, and every pending request with `ClientClosed`. May be called again."""
        self._stop(ClientClosed("the client is closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop(self, reason: TransportError) -> None:
        with self._lock:
            self._end_reason = self._end_reason or reason
        while self._pending:
            _end(self._pending.popitem()[1].future, reason)

    def _receive(self) -> None:
        next_tick_s = time.monotonic()
        try:
            while self._end_reason is None:
                for key, value in self._connection.receive(_TICK_MS):
                    pending = self._pending.pop(key, None) if key else None
                    if pending is not None:
                        _end(pending.future, _read_answer(value, pending))
                now_s = time.monotonic()
                if now_s >= next_tick_s:
                    next_tick_s = now_s + _TICK_MS / 1000
                    self._expire(now_s)
        except TransportError as error:
            self._stop(error)
        except Exception as error:  # noqa: BLE001 - without this thread no request would ever end
            self._stop(TransportError(f"answers can no longer be read: {error}; make a new client"))
        finally:
            self._connection.close_receiver()

    def _expire(self, now_s: float) -> None:
        # A copy, because other threads add to it.
        for request_id, pending in list(self._pending.items()):
            if now_s - pending.sent_s >= pending.timeout_s:
                self.settle(request_id, no_answer(pending.model, pending.timeout_s))


def no_answer(model: str, timeout_s: float) -> NoAnswer:
    """Return the error of a request that expired."""
    return NoAnswer(
        f"no answer from model {model!r} within {timeout_s:g} s: is the job running (anabranch status)? "
        "If it is busy, allow more with timeout_s"
    )


def _end(future: Future[Result], outcome: _Outcome) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Result):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def _read_answer(message: bytes, pending: PendingRequest) -> _Outcome:
    try:
        response = codec.decode_response(message)
        if isinstance(response, ErrorResponse):
            return error_with_code(response.code, response.message)
        return Result(response, latency_ms=(time.monotonic() - pending.sent_s) * 1000)
    except AnabranchError as error:
        return error
