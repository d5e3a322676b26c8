"""Restart policy of a process."""

from __future__ import annotations

from collections import deque

import msgspec


class RestartLimits(msgspec.Struct, frozen=True, kw_only=True):
    """At most `max_restarts` in any `window_s`, after pauses that double up to `max_pause_s`."""

    max_restarts: int = 10
    window_s: float = 120.0
    first_pause_s: float = 0.5
    max_pause_s: float = 10.0


class RestartPolicy:
    """Decides for one process whether and when it starts again."""

    def __init__(self, limits: RestartLimits) -> None:
        self._limits = limits
        self._restarts_s: deque[float] = deque()

    def on_end(self, now_s: float) -> float | None:
        """Return the time of the next start, or None at the limit."""
        limits = self._limits
        while self._restarts_s and self._restarts_s[0] <= now_s - limits.window_s:
            self._restarts_s.popleft()
        restarts = len(self._restarts_s)
        if restarts >= limits.max_restarts:
            return None
        start_s = now_s + min(limits.first_pause_s * 2.0**restarts, limits.max_pause_s)
        self._restarts_s.append(start_s)
        return start_s
