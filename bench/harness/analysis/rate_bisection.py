"""Bisection for the highest sustainable rate."""

from math import sqrt

import msgspec
import numpy as np
import numpy.typing as npt

from bench.harness.analysis.measures import Floats, Tally, fit_line

#: Largest growth of latency, in seconds a second.
MOST_LAG = 0.01

_SIGNIFICANT = 2.0
_STEP_DOWN = 0.85


class Probe(msgspec.Struct, frozen=True):
    """A tried rate.

    Attributes:
        lag: Growth of latency in seconds a second, less twice its error.
        clean: Each request has one right answer.
        kept_up: The rate is sustainable.
    """

    rate_per_s: float
    p99_ms: float
    lag: float
    clean: bool
    kept_up: bool


def judge(rate_per_s: float, tally: Tally, spent_ms: Floats, at_ns: npt.NDArray[np.int64], bound_ms: float) -> Probe:
    """Judge a rate.

    Args:
        spent_ms: Latency of each answered request; `at_ns` is its scheduled time.
        bound_ms: Limit of the 99th percentile.
    """
    p99_ms = float(np.percentile(spent_ms, 99)) if len(spent_ms) else float("inf")
    lag = lag_of(spent_ms, at_ns)
    clean = tally.is_clean and not (tally.refused or tally.expired)
    kept_up = clean and p99_ms <= bound_ms and lag <= MOST_LAG
    return Probe(round(rate_per_s, 2), round(p99_ms, 2), round(lag, 4), clean, kept_up)


def lag_of(spent_ms: Floats, at_ns: npt.NDArray[np.int64]) -> float:
    """Growth of latency, in seconds a second, less twice its standard error; at least 0."""
    if len(spent_ms) < 3:
        return 0.0
    line = fit_line((at_ns - at_ns[0]) / 1e9, spent_ms / 1000)
    return max(0.0, line.slope - _SIGNIFICANT * line.slope_error)


class Search:
    """Halves the range of rates, then steps down until a rate is confirmed.

    The middle is the geometric mean: the relative error is equal at both ends.

    Args:
        low_per_s: Probably sustainable, above 0.
        high_per_s: Probably too high.
        probes: Number of halvings.
    """

    def __init__(self, low_per_s: float, high_per_s: float, probes: int) -> None:
        self._low, self._high = low_per_s, high_per_s
        self._left = probes
        self._confirmed: float | None = None

    @property
    def is_confirming(self) -> bool:
        """True if the next probe is the longer one that confirms."""
        return self._left == 0

    @property
    def found(self) -> float | None:
        """The confirmed rate."""
        return self._confirmed

    @property
    def next_per_s(self) -> float:
        """The next rate."""
        return sqrt(self._low * self._high) if self._left else self._low

    def note(self, *, kept_up: bool) -> None:
        """Record the verdict on that rate."""
        tried = self.next_per_s
        if self._left:
            self._left -= 1
            if kept_up:
                self._low = tried
            else:
                self._high = tried
        elif kept_up:
            self._confirmed = tried
        else:
            self._low = tried * _STEP_DOWN
