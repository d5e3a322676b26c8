"""Models in words, for lists of people."""

from __future__ import annotations

from anabranch.flink_job.model_summary import BatchingSummary, ModelSummary
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.tensors import show_axes

_COMPANY = {
    "strangers": "rows of any requests",
    "within request": "rows of one request",
    "whole": "whole requests, alone",
}


def tensor_line(spec: TensorSpec) -> str:
    """Describe an input or output."""
    return f"{spec.name} {spec.datatype} {'[...]' if spec.any_rank else show_axes(spec.shape)}"


def batching_lines(batching: BatchingSummary) -> list[str]:
    """Say whose rows share a batch, and why."""
    verdict = batching.verdict
    seen = f" (differ by {verdict.deviation:.1g})" if verdict.deviation is not None else ""
    reason = [] if verdict.level == "strangers" and verdict.most_rows else [verdict.reason]
    company = [f"{_COMPANY[verdict.level]}{seen}", *reason]
    if not batching.is_batchable or (verdict.level == "within request" and not batching.fixed_rows):
        return company
    size = f"up to {batching.max_rows} rows" if batching.max_rows else "measured size"
    size = f"{batching.fixed_rows} rows, fixed" if batching.fixed_rows else size
    delay = [f"waits {batching.max_delay_ms:g} ms"] if batching.max_delay_ms else []
    return [*company, size, f"shards of {batching.shard_rows} rows", *delay]


def parts_line(model: ModelSummary) -> str:
    """Name the members of an ensemble, or the parts of a model; empty for a plain model."""
    if model.members:
        return f"{model.merge} of " + ", ".join(model.members)
    names = [
        f"{part.name or f'stage {number}'}{f' x {part.replicas}' if part.replicas > 1 else ''}"
        for number, part in enumerate(model.parts, 1)
    ]
    return " -> ".join(names)
