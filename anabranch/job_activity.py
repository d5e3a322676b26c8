"""What a job does right now, out of two looks at its counters (see `anabranch.operators.core.metrics`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anabranch.operators.core.metrics import LIMITS_US, TOTAL, percentile_us
from anabranch.schemas.latency_breakdown import STAGES

_SCOPE = "anabranch"


@dataclass(frozen=True)
class ModelRate:
    """What became of one model's requests between two looks.

    Attributes:
        model: Name and version.
        batch_rows: Rows in a batch, on average; 0 where all requests were split.
        p50_ms: From the record's timestamp to the written answer; likewise `p99_ms`.
        stage_ms: What each stage took, on average.
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
    """What a job did between two looks.

    Attributes:
        errors_per_s: By code.
    """

    models: list[ModelRate]
    errors_per_s: dict[str, float]


def wanted(metric_ids: Iterable[str]) -> list[str]:
    """Of all metrics of an operator, those that `activity` reads."""
    return [name for name in metric_ids if f".{_SCOPE}." in name and (".le." not in name or f".{TOTAL}." in name)]


def activity(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> JobActivity:
    """What happened between two looks.

    Args:
        before: Counts by metric, over all tasks.
        after: The same later; fewer where a job has started again.
        seconds: Between the two.
    """
    grown: dict[tuple[str, ...], float] = {}
    for name, count in after.items():
        # The operator's own name comes first, and may be anything.
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
        # A bucket that nobody was in yet has no counter; it holds what those below it do.
        upto = max(upto, grown.get((TOTAL, "le", "inf" if limit_us is None else str(limit_us), "requests"), 0.0))
        buckets.append(upto)
    return ModelRate(
        model=model,
        requests_per_s=requests / seconds,
        rows_per_s=rows / seconds,
        batch_rows=rows / batches if batches else 0.0,
        p50_ms=percentile_us(buckets, 0.5) / 1000,
        p99_ms=percentile_us(buckets, 0.99) / 1000,
        stage_ms={stage: grown.get((stage, "us"), 0.0) / requests / 1000 if requests else 0.0 for stage in STAGES},
    )
