"""Percentiles, tallies, rates and fitted lines of recorded runs."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from bench.harness.response_log import ResponseLog

Floats = npt.NDArray[np.float64]

#: The largest batch of any system.
_BATCH, _TOGETHER_MS = 64, 5
_WINDOW_S = 0.5
_CALM_AGAIN = 2.0


class Percentiles(msgspec.Struct, frozen=True):
    """A distribution in milliseconds."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float

    @classmethod
    def of(cls, values_ms: Floats) -> "Percentiles":
        """Percentiles of some values; NaN without values."""
        if not len(values_ms):
            return cls(*[float("nan")] * 6)
        quantiles = np.percentile(values_ms, [50, 90, 95, 99, 100])
        return cls(*(round(float(value), 3) for value in (*quantiles, values_ms.mean())))


class Tally(msgspec.Struct, frozen=True):
    """Counts of a run's requests by outcome.

    Attributes:
        answered: Requests with an answer.
        refused: First answers `overloaded`; `expired` are `deadline_exceeded`.
        wrong: First answers with another error or deviation.
        repeated: Further answers to a request.
        deviation: Largest difference among right answers.
        cosine: Least one among them.
    """

    requests: int
    answered: int
    missing: int
    wrong: int
    repeated: int
    deviation: float
    refused: int = 0
    expired: int = 0
    cosine: float = 1.0

    @property
    def is_clean(self) -> bool:
        """True if each request has one answer: right, refused or expired."""
        return not (self.missing or self.wrong or self.repeated)


class Spread(msgspec.Struct, frozen=True):
    """Median and range of several repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median and range of the repeats."""
        return cls(*(round(float(value), 4) for value in (np.median(values), min(values), max(values))))


class Line(msgspec.Struct, frozen=True):
    """A least-squares fit.

    Attributes:
        slope: Change of y for each unit of x.
        slope_error: Its standard error.
    """

    intercept: float
    slope: float
    slope_error: float

    def at(self, x: float) -> float:
        """Return the line's y."""
        return self.intercept + self.slope * x


def first_answers(answers: ResponseLog, first_id: int, count: int) -> npt.NDArray[np.int64]:
    """Index of each request's first answer, or -1."""
    firsts = np.full(count, -1, np.int64)
    numbers = answers.ids - first_id
    ours = np.flatnonzero((numbers >= 0) & (numbers < count))
    # In reverse order: the first answer overwrites later ones.
    firsts[numbers[ours[::-1]]] = ours[::-1]
    return firsts


def tally(answers: ResponseLog, first_id: int, count: int, tolerance: float) -> Tally:
    """Count the outcomes of the requests from `first_id`."""
    firsts = first_answers(answers, first_id, count)
    cosine = answers.cosine[firsts[firsts >= 0]]
    deviation = answers.deviation[firsts[firsts >= 0]]
    refused, expired = (said[firsts[firsts >= 0]] for said in (answers.refused, answers.expired))
    right = deviation <= tolerance
    answered = len(deviation)
    return Tally(
        requests=count,
        answered=answered,
        missing=count - answered,
        wrong=int((~right & ~refused & ~expired).sum()),
        refused=int(refused.sum()),
        expired=int(expired.sum()),
        repeated=len(answers.ids) - answered,
        deviation=float(deviation[right].max(initial=0.0)),
        cosine=float(cosine[right].min(initial=1.0)),
    )


def latencies_ms(answers: ResponseLog, scheduled_ns: npt.NDArray[np.int64], first_id: int) -> Floats:
    """Latency of each answered request, from its scheduled send time to the reader."""
    firsts = first_answers(answers, first_id, len(scheduled_ns))
    there = firsts >= 0
    spent_ns: Floats = (answers.received_ns[firsts[there]] - scheduled_ns[there]) / 1e6
    return spent_ns


def append_latencies_ms(answers: ResponseLog, scheduled_ns: npt.NDArray[np.int64], first_id: int) -> Floats:
    """Return the same to the answer's LogAppendTime: whole milliseconds, rounded down."""
    firsts = first_answers(answers, first_id, len(scheduled_ns))
    there = firsts >= 0
    spent_ms: Floats = answers.appended_ms[firsts[there]] - scheduled_ns[there] / 1e6
    return spent_ms


def rate_per_s(appended_ms: npt.NDArray[np.int64], skip: int) -> float:
    """Answers a second after the first `skip`.

    Answers in the first one's batch do not count.
    """
    times_ms = np.sort(appended_ms)
    if len(times_ms) <= skip + 1:
        return float("nan")
    start, latest = skip, min(skip + _BATCH, len(times_ms)) - 1
    while start < latest and times_ms[start + 1] - times_ms[start] <= _TOGETHER_MS:
        start += 1
    if start == len(times_ms) - 1:
        start = skip
    span_ms = int(times_ms[-1] - times_ms[start])
    return (len(times_ms) - start - 1) / max(span_ms, 1) * 1000


def fit_line(x: Floats, y: Floats) -> Line:
    """Fit a least-squares line.

    Raises:
        ValueError: Fewer than three points, or all have the same x.
    """
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(f"{len(x)} points, all in one place or fewer than three, make no line")
    x_mean, y_mean = x.mean(), y.mean()
    variance = ((x - x_mean) ** 2).sum()
    slope = ((x - x_mean) * (y - y_mean)).sum() / variance
    residuals = y - y_mean - slope * (x - x_mean)
    error = np.sqrt((residuals**2).sum() / (len(x) - 2) / variance)
    return Line(float(y_mean - slope * x_mean), float(slope), float(error))


def recovery_s(after_s: Floats, spent_ms: Floats, calm_ms: Floats) -> float:
    """Time from the end of a burst until latency is normal again.

    Args:
        after_s: Scheduled times after the burst; `spent_ms` are the latencies.
        calm_ms: Latencies before the burst.

    Returns:
        Start of the first half second with at most twice their median, or the end.
    """
    limit_ms = _CALM_AGAIN * float(np.median(calm_ms)) if len(calm_ms) else 0.0
    windows = (after_s / _WINDOW_S).astype(np.int64)
    for window in np.unique(windows):
        if np.median(spent_ms[windows == window]) <= limit_ms:
            return round(float(window) * _WINDOW_S, 1)
    return round(float(after_s.max(initial=0.0)), 1)
