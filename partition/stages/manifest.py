"""Publication of proven stages with their manifest."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.partition.errors import PlanNotWritten
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.planning.placement import Placement
from anabranch.partition.profiling.inputs import NamedArrays
from anabranch.partition.stages.equivalence import Proof, prove
from anabranch.partition.stages.writer import StageFile, data_path, sha256_of, write_stages
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, encode_manifest

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Planned costs of a stage."""

    ms: float
    output_bytes: int
    replicas: int = 1


def write_placement(
    graph: Graph, placement: Placement, folder: Path, *, rows: int, batches: Sequence[NamedArrays] = ()
) -> tuple[StageManifest, Proof]:
    """Cut by a plan; see `write_plan`."""
    costs = [
        StageCosts(ms=round(stage.ms, 4), output_bytes=stage.output_bytes, replicas=len(stage.replicas))
        for stage in placement.stages
    ]
    bottleneck_ms = round(placement.bottleneck_ms, 4)
    return write_plan(
        graph, placement.downsets, folder, rows=rows, costs=costs, bottleneck_ms=bottleneck_ms, batches=batches
    )


def write_plan(
    graph: Graph,
    downsets: Sequence[int],
    folder: Path,
    *,
    rows: int,
    costs: Sequence[StageCosts],
    bottleneck_ms: float,
    batches: Sequence[NamedArrays] = (),
) -> tuple[StageManifest, Proof]:
    """Cut a model, prove the stages, and replace those in a folder.

    Args:
        graph: The model.
        downsets: Growing cuts.
        folder: Target.
        rows: Batch size of the costs.
        costs: Costs of each stage.
        bottleneck_ms: Between batches.
        batches: For the proof; random ones if empty.

    Raises:
        CutError: The model cannot be cut there.
        ProofError: The stages are not proven.
        ModelError: The file is at fault.
        PlanNotWritten: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Moving within a folder copies nothing.
        with tempfile.TemporaryDirectory(prefix=".cut-", dir=folder) as temporary:
            stages = write_stages(graph, downsets, Path(temporary))
            proof = prove(graph, stages, batches)
            plan = StageManifest(
                model_sha256=sha256_of(graph.path),
                rows=rows,
                bottleneck_ms=bottleneck_ms,
                stages=tuple(_describe(stage, cost) for stage, cost in zip(stages, costs, strict=True)),
            )
            _publish(stages, plan, folder)
    except OSError as error:
        raise PlanNotWritten(
            f"cannot write a plan into {folder}: {error.strerror}; choose another folder: `anabranch plan --out DIR`"
        ) from None
    return plan, proof


def _describe(stage: StageFile, cost: StageCosts) -> StageEntry:
    return StageEntry(
        file=stage.path.name,
        sha256=stage.sha256,
        inputs=stage.inputs,
        outputs=stage.outputs,
        nodes=stage.nodes,
        parameter_bytes=stage.parameter_bytes,
        ms=cost.ms,
        output_bytes=cost.output_bytes,
        replicas=cost.replicas,
    )


def _publish(stages: Sequence[StageFile], plan: StageManifest, folder: Path) -> None:
    """Move stages into place, the manifest last."""
    (folder / PLAN_FILE).unlink(missing_ok=True)
    for old in folder.glob("stage-*.onnx*"):
        old.unlink()
    for stage in stages:
        for file in (data_path(stage.path), stage.path):
            if file.exists():
                file.rename(folder / file.name)
    written = stages[0].path.with_name(PLAN_FILE)
    written.write_bytes(encode_manifest(plan))
    written.rename(folder / PLAN_FILE)
