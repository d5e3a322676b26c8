"""Rates and latency of a job between two readings of `anabranch.operators.core.metrics`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anabranch.operators.core.metrics import LIMITS_US, TOTAL, percentile_us
from anabranch.schemas.latency_breakdown import PHASES

_SCOPE = "anabranch"


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
class JobActivity:
    """Rates and latency of all models, and errors by code."""

    models: list[ModelRate]
    errors_per_s: dict[str, float]


def wanted(metric_ids: Iterable[str]) -> list[str]:
    """Select the metrics that `activity` reads."""
    return [name for name in metric_ids if f".{_SCOPE}." in name and (".le." not in name or f".{TOTAL}." in name)]


def activity(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> JobActivity:
    """Compute the activity between two readings.

    Args:
        before: Counts by metric, summed over all tasks.
        after: A later reading; smaller if the job has restarted.
        seconds: Time between them.
    """
    grown: dict[tuple[str, ...], float] = {}
    for name, count in after.items():
        # The name of the operator comes first, and may contain dots.
        path = tuple(name.split(f".{_SCOPE}.", 1)[1].split("."))
        grown[path] = grown.get(path, 0.0) + max(0.0, count - before.get(name, 0.0))
    models = sorted({path[1] for path in grown if path[0] == "model"})
    rates = [
        _rate(model, {path[2:]: count for path, count in grown.items() if path[:2] == ("model", model)}, seconds)
        for model in models
    ]
    return JobActivity(
        [rate for rate in rates if rate.requests_per_s],
        {path[1]: count / seconds for path, count in sorted(grown.items()) if path[0] == "error" and count},
    )


def _rate(model: str, grown: Mapping[tuple[str, ...], float], seconds: float) -> ModelRate:
    requests, rows, batches = (grown.get((name,), 0.0) for name in ("requests", "rows", "batches"))
    buckets, upto = [], 0.0
    for limit_us in LIMITS_US:
        # An empty bucket has no counter.
        upto = max(upto, grown.get((TOTAL, "le", "inf" if limit_us is None else str(limit_us), "requests"), 0.0))
        buckets.append(upto)
    return ModelRate(
        model=model,
        requests_per_s=requests / seconds,
        rows_per_s=rows / seconds,
        batch_rows=rows / batches if batches else 0.0,
        p50_ms=percentile_us(buckets, 0.5) / 1000,
        p99_ms=percentile_us(buckets, 0.99) / 1000,
        stage_ms={stage: grown.get((stage, "us"), 0.0) / requests / 1000 if requests else 0.0 for stage in PHASES},
    )
