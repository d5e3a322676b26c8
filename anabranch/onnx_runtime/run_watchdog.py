"""Stops runs that exceed their time limit."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from anabranch.onnx_runtime.session import load_runtime
from anabranch.schemas.errors import RunTooLong

T = TypeVar("T")

#: Longest wait between two looks at the runs.
_LONGEST_TICK_S = 0.25


class _Run:
    __slots__ = ("is_stopped", "options", "stop_at_s")

    def __init__(self) -> None:
        self.options = load_runtime().RunOptions()
        self.stop_at_s = 0.0
        self.is_stopped = False


class RunWatchdog:
    """One thread that stops the late runs of a process.

    A run costs two changes of a dictionary: the thread looks at it only after a tick.
    """

    def __init__(self) -> None:
        self._active: dict[int, _Run] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._tick_s = _LONGEST_TICK_S

    def limited(self, limit_ms: int) -> "LimitedRuns":
        """Return runs with a time limit."""
        with self._lock:
            self._tick_s = min(self._tick_s, limit_ms / 4000)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="anabranch-run-watchdog", daemon=True)
                self._thread.start()
        return LimitedRuns(self._active, limit_ms)

    def _watch(self) -> None:
        while True:
            time.sleep(self._tick_s)
            now_s = time.monotonic()
            for run in list(self._active.values()):
                if now_s >= run.stop_at_s:
                    run.is_stopped = True
                    run.options.terminate = True


class LimitedRuns:
    """The runs of one session, one at a time on each thread."""

    def __init__(self, active: dict[int, _Run], limit_ms: int) -> None:
        self._active = active
        self._limit_ms = limit_ms
        self._unused = [_Run()]

    def call(self, run: Callable[[Any], T]) -> T:
        """Call a function with ONNX Runtime's run options.

        Raises:
            RunTooLong: The run was stopped.
        """
        try:
            current = self._unused.pop()
        except IndexError:
            current = _Run()
        current.stop_at_s = time.monotonic() + self._limit_ms / 1000
        self._active[id(current)] = current
        try:
            return run(current.options)
        except Exception:
            if current.is_stopped:
                raise RunTooLong(
                    f"the run took longer than {self._limit_ms} ms, and was stopped: send smaller inputs, or raise "
                    "max_run_ms under [session] in the model's model.toml"
                ) from None
            raise
        finally:
            del self._active[id(current)]
            # Options whose flag was set, perhaps after the run, would stop the next one.
            if not current.is_stopped:
                self._unused.append(current)


#: One for the process, as are ONNX Runtime's threads.
WATCHDOG = RunWatchdog()
