"""Rates and latency of a job between two readings of `anabranch.operators.core.metrics`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from anabranch.operators.core.metrics import LIMITS_US, TOTAL, Path, percentile_us
from anabranch.schemas.latency_breakdown import PHASES

_SCOPE = "anabranch"
_WHOLE_FROM = 10


@dataclass(frozen=True)
class ModelRate:
    """Rates and latency of one model.

    Attributes:
        model: Name and version.
        batch_rows: Mean rows of a batch; 0 if all requests were split.
        p50_ms, p99_ms: Latency from the record's timestamp to the written answer.
        stage_ms: Mean time of each phase.
    """

    model: str
    requests_per_s: float
    rows_per_s: float
    batch_rows: float
    p50_ms: float
    p99_ms: float
    stage_ms: dict[str, float]


@dataclass(frozen=True)
class ClockSkew:
    """Requests whose senders' clocks differ from the tasks'.

    Attributes:
        side: `ahead` of the task, or `behind`: read after their deadline.
        mean_ms: Difference; of requests behind, their age.
    """

    side: str
    requests: float
    mean_ms: float

    @property
    def line(self) -> str:
        """One line for people."""
        if self.side == "ahead":
            early = f"{self.requests:,.0f} requests came {self.mean_ms:,.0f} ms before their time"
            return f"{early}: a sender's clock is ahead"
        return (
            f"{self.requests:,.0f} requests were {self.mean_ms:,.0f} ms old and late when read: "
            "a sender's clock is behind, or tasks are"
        )


@dataclass(frozen=True)
class JobActivity:
    """Rates and latency of all models, errors by code, and skew of clocks, in `seconds`."""

    models: list[ModelRate]
    errors_per_s: dict[str, float]
    clocks: list[ClockSkew] = field(default_factory=list)
    seconds: float = 0.0


def rate_text(per_s: float) -> str:
    """Write a rate for people."""
    return f"{per_s:,.0f}" if per_s >= _WHOLE_FROM else f"{per_s:.2g}"


class ActivityWindow:
    """Readings of one job, of which Flink may repeat old ones.

    Args:
        refresh_s: Time for which Flink may show the same counters.
    """

    def __init__(self, refresh_s: float) -> None:
        self._refresh_s = refresh_s
        self._last: tuple[float, Mapping[str, float]] | None = None
        self._seen: JobActivity | None = None

    def add(self, now_s: float, counts: Mapping[str, float]) -> JobActivity | None:
        """Take a reading, and return the activity between the last two that differ; None at the first."""
        if self._last is None:
            self._last = now_s, counts
            return None
        last_s, before = self._last
        if counts == before and now_s - last_s < self._refresh_s:
            return self._seen
        self._seen = activity(before, counts, now_s - last_s)
        self._last = now_s, counts
        return self._seen


def wanted(metric_ids: Iterable[str]) -> list[str]:
    """Select the metrics that `activity` reads."""
    ours = (name for name in metric_ids if f".{_SCOPE}." in name and f".{_SCOPE}.left_out." not in name)
    return [name for name in ours if ".le." not in name or f".{TOTAL}." in name]


def activity(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> JobActivity:
    """Compute the activity between two readings.

    Args:
        before: Counts by metric, summed over all tasks.
        after: A later reading; smaller if the job has restarted.
        seconds: Time between them.
    """
    grown = by_path({name: max(0.0, count - before.get(name, 0.0)) for name, count in after.items()})
    rates = [_rate(model, counts, seconds) for model, counts in by_model(grown).items()]
    return JobActivity(
        [rate for rate in rates if rate.requests_per_s],
        {path[1]: count / seconds for path, count in sorted(grown.items()) if path[0] == "error" and count},
        clock_skews(grown),
        seconds,
    )


def clock_skews(counts: Mapping[tuple[str, ...], float]) -> list[ClockSkew]:
    """Return the skew on each side, from counts by path."""
    found = []
    for side in ("ahead", "behind"):
        requests = counts.get(("clock", f"{side}_requests"), 0.0)
        if requests:
            found.append(ClockSkew(side, requests, counts.get(("clock", f"{side}_ms"), 0.0) / requests))
    return found


def wanted_clocks(metric_ids: Iterable[str]) -> list[str]:
    """Select the metrics that `clock_skews` reads."""
    return [name for name in metric_ids if f".{_SCOPE}.clock." in name]


def path_of(metric_id: str) -> tuple[str, ...]:
    """Return the path of a metric; the name of the operator comes first, and may contain dots."""
    return tuple(metric_id.split(f".{_SCOPE}.", 1)[1].split("."))


def by_path(metrics: Mapping[str, float]) -> dict[Path, float]:
    """Add the counts of all operators by path."""
    counts: dict[Path, float] = {}
    for name, count in metrics.items():
        path = path_of(name)
        counts[path] = counts.get(path, 0.0) + count
    return counts


def by_model(counts: Mapping[Path, float]) -> dict[str, dict[Path, float]]:
    """Return the counts of each model by the rest of their paths, in the order of names."""
    models = sorted({path[1] for path in counts if path[0] == "model"})
    return {
        model: {path[2:]: count for path, count in counts.items() if path[:2] == ("model", model)} for model in models
    }


def buckets_of(counts: Mapping[Path, float]) -> list[float]:
    """Return a model's requests of at most each of `LIMITS_US`."""
    buckets, upto = [], 0.0
    for limit_us in LIMITS_US:
        # An empty bucket has no counter.
        upto = max(upto, counts.get((TOTAL, "le", "inf" if limit_us is None else str(limit_us), "requests"), 0.0))
        buckets.append(upto)
    return buckets


def _rate(model: str, grown: Mapping[tuple[str, ...], float], seconds: float) -> ModelRate:
    requests, rows, batches = (grown.get((name,), 0.0) for name in ("requests", "rows", "batches"))
    buckets = buckets_of(grown)
    return ModelRate(
        model=model,
        requests_per_s=requests / seconds,
        rows_per_s=rows / seconds,
        batch_rows=rows / batches if batches else 0.0,
        p50_ms=percentile_us(buckets, 0.5) / 1000,
        p99_ms=percentile_us(buckets, 0.99) / 1000,
        stage_ms={stage: grown.get((stage, "us"), 0.0) / requests / 1000 if requests else 0.0 for stage in PHASES},
    )
