"""The future of a request; it waits no longer than the request."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from concurrent.futures import Future

from anabranch.messaging.errors import ClientForked, NoAnswer, WaitsForItself
from anabranch.result import Result

#: The receiving thread looks for expired requests in steps; it comes first where it runs.
_GRACE_S = 0.5


class AnswerFuture(Future[Result]):
    """A future of an answer.

    Args:
        receiver: The thread that ends it.
        expires_s: End of the request, on the monotonic clock.
        late: The error for that time.
    """

    def __init__(self, receiver: threading.Thread, expires_s: float, late: NoAnswer) -> None:
        super().__init__()
        self._receiver = receiver
        self._expires_s = expires_s
        self._late = late
        self._process_id = os.getpid()

    def result(self, timeout: float | None = None) -> Result:
        """Return the answer; wait until the request expires, or for `timeout` seconds.

        Raises:
            AnabranchError: The request failed.
            TimeoutError: `timeout` is over; the request is not.
        """
        wait_s = self._wait_s(timeout)
        try:
            return super().result(wait_s)
        except concurrent.futures.TimeoutError as error:
            raise self._reason(error, timeout, wait_s) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error or None, as `result` waits."""
        wait_s = self._wait_s(timeout)
        try:
            return super().exception(wait_s)
        except concurrent.futures.TimeoutError as error:
            raise self._reason(error, timeout, wait_s) from None

    def _wait_s(self, timeout: float | None) -> float | None:
        if self.done():
            return timeout
        if os.getpid() != self._process_id:
            raise ClientForked("the request was sent by another process, which gets its answer: send it here, too")
        if threading.current_thread() is self._receiver:
            raise WaitsForItself(
                "a callback waits for an answer on the thread that receives answers: use add_done_callback instead, "
                "or wait on another thread"
            )
        left_s = max(0.0, self._expires_s - time.monotonic()) + _GRACE_S
        return left_s if timeout is None else min(timeout, left_s)

    def _reason(self, error: BaseException, timeout: float | None, waited_s: float | None) -> BaseException:
        return error if self.done() or waited_s == timeout else self._late
