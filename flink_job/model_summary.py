"""Summaries of models, which a job shows through Flink's REST."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from anabranch.schemas.model import BatchingVerdict, Catalog, LeftOut, ModelSpec, TensorSpec

#: Names of job parameters: the summaries, the manifest in the store, and the models that are not served.
JOB_PARAMETER = "anabranch.model-summaries"
MANIFEST_PARAMETER = "anabranch.models-manifest"
LEFT_OUT_PARAMETER = "anabranch.left-out"


class BatchingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Batching of a model.

    Attributes:
        fixed_rows: Batch size of the model; None for any.
        max_rows: Largest batch; None for the cheapest.
        verdict: Company in which rows run.
    """

    is_batchable: bool
    fixed_rows: int | None
    max_rows: int | None
    shard_rows: int
    max_delay_ms: float
    verdict: BatchingVerdict = BatchingVerdict()


class PartSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, or a named step of a chain.

    Attributes:
        sha256: Digests of its file and functions.
    """

    name: str
    replicas: int
    sha256: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model.

    Attributes:
        sha256: Digest of the file; empty for ensembles and chains.
        parts: Stages or steps.
        members: `NAME/VERSION` of an ensemble's models.
    """

    name: str
    version: str
    kind: Literal["model", "stages", "ensemble", "chain"]
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: BatchingSummary
    parts: tuple[PartSummary, ...] = ()
    members: tuple[str, ...] = ()
    merge: str = ""


def summarize(catalog: Catalog) -> list[ModelSummary]:
    """Return the summaries, the newest version last."""
    return [_summary(model) for _, versions in sorted(catalog.models.items()) for model in versions.values()]


def is_same(one: ModelSummary, other: ModelSummary) -> bool:
    """Tell if two models are served alike; a trial on another machine may measure another deviation."""
    return _without_figures(one) == _without_figures(other)


def _without_figures(model: ModelSummary) -> ModelSummary:
    batching = msgspec.structs.replace(model.batching, verdict=BatchingVerdict(level=model.batching.verdict.level))
    return msgspec.structs.replace(model, batching=batching)


def encode_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return the models that are not served as JSON."""
    return msgspec.json.encode(left_out).decode()


def decode_left_out(text: str) -> list[LeftOut]:
    """Return the models of their JSON, or raise `msgspec.MsgspecError`."""
    return msgspec.json.decode(text, type=list[LeftOut])


def encode_summaries(summaries: Iterable[ModelSummary]) -> str:
    """Return the summaries as JSON."""
    return msgspec.json.encode(list(summaries)).decode()


def decode_summaries(text: str) -> list[ModelSummary]:
    """Return the summaries of their JSON, or raise `msgspec.MsgspecError`."""
    return msgspec.json.decode(text, type=list[ModelSummary])


def _summary(model: ModelSpec) -> ModelSummary:
    ensemble = model.ensemble
    return ModelSummary(
        name=model.name,
        version=model.version,
        kind="ensemble" if ensemble else "chain" if model.is_chain else "stages" if model.stages else "model",
        sha256=model.sha256,
        inputs=model.inputs,
        outputs=model.outputs,
        batching=BatchingSummary(
            is_batchable=model.batchable,
            fixed_rows=model.fixed_rows,
            max_rows=model.batching.max_rows,
            shard_rows=model.batching.shard_rows,
            max_delay_ms=model.batching.max_delay_ms,
            verdict=model.verdict,
        ),
        parts=tuple(
            PartSummary(
                name=stage.name,
                replicas=stage.replicas,
                sha256=(stage.sha256, *(function.sha256 for function in (stage.before, stage.after) if function)),
                inputs=stage.inputs,
                outputs=stage.outputs,
            )
            for stage in model.stages
        ),
        members=tuple(f"{name}/{version}" for name, version in ensemble.members) if ensemble else (),
        merge=ensemble.merge if ensemble else "",
    )
