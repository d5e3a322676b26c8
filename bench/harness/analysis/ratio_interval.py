"""The ratio of two systems over several rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import mean, stdev

#: Two-sided 95 % quantiles of Student's t, by degrees of freedom from 1; then the normal distribution's.
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
_Z_95 = 1.96


@dataclass(frozen=True)
class RatioInterval:
    """A ratio of two sides over all rounds, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, change: Sequence[float], base: Sequence[float]) -> "RatioInterval":
        """Return the geometric mean of the rounds' ratios; the interval is unbounded for one round."""
        logs = [log(after / before) for after, before in zip(change, base, strict=True)]
        middle = mean(logs)
        if len(logs) < 2:
            return cls(exp(middle), 0.0, float("inf"))
        quantile = _T_95[len(logs) - 2] if len(logs) - 2 < len(_T_95) else _Z_95
        margin = quantile * stdev(logs) / sqrt(len(logs))
        return cls(exp(middle), exp(middle - margin), exp(middle + margin))

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the ratio."""
        return (self.high - self.low) / 2 / self.ratio

    def decides(self, limit: float) -> bool:
        """Tell whether the whole interval is on one side of a limit."""
        return self.low >= limit or self.high < limit
