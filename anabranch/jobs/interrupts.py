"""Ctrl-C and SIGTERM, taken between two calls into Java instead of inside one."""

from __future__ import annotations

import logging
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: An interrupted sleep goes on, so a signal is taken after at most this time.
_SLICE_S = 0.1


class Interrupts:
    """Signals that wait until the command takes them.

    An exception inside a py4j call breaks the connection to the JVM, and Python drops one that a finalizer raises.
    A second signal that finds the first one still waiting is raised at once: the command hangs in a call.
    """

    def __init__(self) -> None:
        """Handle nothing yet."""
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Note signals from now on."""
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give the signals back; take one that waits, unless the block failed."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None:
            self.take()

    def take(self) -> None:
        """Raise `KeyboardInterrupt` for a waiting SIGINT, and `SystemExit` for a waiting SIGTERM."""
        if self._waiting:
            number, self._waiting = self._waiting[0], []
            _raise(number)

    def sleep(self, seconds: float) -> None:
        """Sleep, and take a signal as soon as it comes."""
        end_s = time.monotonic() + seconds
        self.take()
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _SLICE_S))
            self.take()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's signature
        self._waiting.append(number)
        if len(self._waiting) > 1:
            # py4j would print the traceback of the call.
            logging.disable(logging.CRITICAL)
            _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
