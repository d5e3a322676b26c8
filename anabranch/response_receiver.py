"""The receiving half of a client: one thread that hands every answer to the future that waits for it.

It reads every partition of the responses topic without a consumer group, from the end that the topic had when the
client was made: no answer to a request of its own can lie before that. A record whose key is not the id of a request
that still waits is skipped before any of it is decoded, so other clients' answers and repeated ones cost next to
nothing.
"""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

import kafka

from anabranch.result import Result
from anabranch.schemas import codec
from anabranch.schemas.errors import AnabranchError, error_with_code
from anabranch.schemas.messages import ErrorResponse
from anabranch.transport_errors import ClientClosed, NoAnswer, TransportError

#: How often to look for requests whose time is up, and whether to end.
_TICK_MS = 100


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request whose answer has not come.

    Attributes:
        sent_s: When it was handed in, on the monotonic clock.
    """

    future: Future[Result]
    sent_s: float
    timeout_s: float
    model: str


class ResponseReceiver:
    """The requests that wait, and the thread that answers them.

    Args:
        consumer: Assigned to the responses topic and at its end. It is used and closed by the thread alone.
    """

    def __init__(self, consumer: kafka.KafkaConsumer) -> None:
        self._consumer = consumer
        self._waiting: dict[bytes, Waiting] = {}
        self._lock = threading.Lock()
        self._end_reason: TransportError | None = None
        self._thread = threading.Thread(target=self._receive, name="anabranch-answers", daemon=True)
        self._thread.start()

    def expect(self, request_id: bytes, waiting: Waiting) -> None:
        """To be called before the request is sent, so that no answer can be faster.

        Raises:
            TransportError: No answer can be received any more.
        """
        with self._lock:
            if self._end_reason is not None:
                raise self._end_reason
            self._waiting[request_id] = waiting

    def settle(self, request_id: bytes, outcome: Result | Exception) -> None:
        """Ends a request, if it still waits."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            _end(waiting.future, outcome)

    def close(self) -> None:
        """Ends the thread, and every request that still waits with `ClientClosed`. Safe to call again."""
        self._stop(ClientClosed("the client is closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop(self, reason: TransportError) -> None:
        with self._lock:
            self._end_reason = self._end_reason or reason
        while self._waiting:
            _end(self._waiting.popitem()[1].future, reason)

    def _receive(self) -> None:
        next_tick_s = time.monotonic()
        try:
            while self._end_reason is None:
                for records in self._consumer.poll(timeout_ms=_TICK_MS).values():
                    for record in records:
                        waiting = self._waiting.pop(record.key, None)
                        if waiting is not None:
                            _end(waiting.future, _read_answer(record.value, waiting))
                now_s = time.monotonic()
                if now_s >= next_tick_s:
                    next_tick_s = now_s + _TICK_MS / 1000
                    self._expire(now_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, without this thread nobody is ever answered
            self._stop(TransportError(f"answers can no longer be read: {error}; make a new client"))
        finally:
            self._consumer.close()

    def _expire(self, now_s: float) -> None:
        # A copy, for other threads add to it; what is in flight is little enough to look at all of it.
        for request_id, waiting in list(self._waiting.items()):
            if now_s - waiting.sent_s >= waiting.timeout_s:
                self.settle(
                    request_id,
                    NoAnswer(
                        f"no answer from model {waiting.model!r} within {waiting.timeout_s:g} s: is the job running "
                        "(anabranch status)? If it is busy, allow more with timeout_s"
                    ),
                )


def _end(future: Future[Result], outcome: Result | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Result):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def _read_answer(message: bytes, waiting: Waiting) -> Result | Exception:
    try:
        response = codec.decode_response(message)
        if isinstance(response, ErrorResponse):
            return error_with_code(response.code, response.message)
        return Result(response, latency_ms=(time.monotonic() - waiting.sent_s) * 1000)
    except AnabranchError as error:
        return error
