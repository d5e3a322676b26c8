"""The highest rate that a system can keep up with: what to try next, and what counts as keeping up."""

from math import sqrt

import msgspec
import numpy as np
import numpy.typing as npt

from bench.harness.analysis.measures import Floats, Tally, fit_line

#: Seconds by which latency may grow in every second: a system that falls behind by more does not keep up.
MOST_LAG = 0.01

_SIGNIFICANT = 2.0
_STEP_DOWN = 0.85


class Probe(msgspec.Struct, frozen=True):
    """A rate that was tried.

    Attributes:
        lag: Seconds by which latency grew in every second, beyond what chance explains.
        clean: Whether every request got one right answer.
        kept_up: Whether all that was asked of it held.
    """

    rate_per_s: float
    p99_ms: float
    lag: float
    clean: bool
    kept_up: bool


def judge(rate_per_s: float, tally: Tally, spent_ms: Floats, at_ns: npt.NDArray[np.int64], bound_ms: float) -> Probe:
    """Whether a system kept up.

    Args:
        spent_ms: The latency of every request that was answered, and `at_ns` when each was scheduled.
        bound_ms: For the 99th percentile.
    """
    p99_ms = float(np.percentile(spent_ms, 99)) if len(spent_ms) else float("inf")
    lag = lag_of(spent_ms, at_ns)
    clean = tally.is_clean and not (tally.refused or tally.expired)
    kept_up = clean and p99_ms <= bound_ms and lag <= MOST_LAG
    return Probe(round(rate_per_s, 2), round(p99_ms, 2), round(lag, 4), clean, kept_up)


def lag_of(spent_ms: Floats, at_ns: npt.NDArray[np.int64]) -> float:
    """How fast latency grew, in seconds a second: the least slope that the scatter of the points allows, or 0."""
    if len(spent_ms) < 3:
        return 0.0
    line = fit_line((at_ns - at_ns[0]) / 1e9, spent_ms / 1000)
    return max(0.0, line.slope - _SIGNIFICANT * line.slope_error)


class Search:
    """Halves the range of rates in which the highest one lies, then steps down until one is confirmed.

    The range is halved as ratios are: what is found is as exact for a rate at its lower end as for one at its upper.

    Args:
        low_per_s: A rate that is expected to be kept up with, and not 0; nothing is built on it.
        high_per_s: A rate that is expected to be too much.
        probes: How often to halve.
    """

    def __init__(self, low_per_s: float, high_per_s: float, probes: int) -> None:
        self._low, self._high = low_per_s, high_per_s
        self._left = probes
        self._confirmed: float | None = None

    @property
    def is_confirming(self) -> bool:
        """Whether the next rate is to be confirmed: tried for longer."""
        return self._left == 0

    @property
    def found(self) -> float | None:
        """The highest rate, once it is confirmed."""
        return self._confirmed

    @property
    def next_per_s(self) -> float:
        """The rate to try now."""
        return sqrt(self._low * self._high) if self._left else self._low

    def note(self, *, kept_up: bool) -> None:
        """What became of that rate."""
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
