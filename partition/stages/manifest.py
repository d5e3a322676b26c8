"""Delivers a plan: stages, proven, and then `plan.json`. Where that file is, all is as it says."""

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
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, encode_plan

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """What the planner knows of a stage; see `anabranch.schemas.stage_manifest.StageEntry`."""

    ms: float
    output_bytes: int
    replicas: int = 1


def write_placement(
    graph: Graph, placement: Placement, folder: Path, *, rows: int, batches: Sequence[NamedArrays] = ()
) -> tuple[StageManifest, Proof]:
    """Cuts a model as a planner chose; see `write_plan`."""
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
    """Cuts a model, proves the stages, and leaves them in a folder with their manifest.

    An earlier plan in that folder is replaced, at the end and only if all went well.

    Args:
        graph: The model.
        downsets: The cuts, each within the next.
        folder: Where to; made where it is missing.
        rows: Rows of the batch that the costs are for.
        costs: One for each stage.
        bottleneck_ms: See `anabranch.schemas.stage_manifest.Plan`.
        batches: What to prove it on; where there are none, random ones.

    Raises:
        CutError: The model cannot be cut there.
        ProofError: The stages are not shown to equal the model.
        ModelError: The model's file is at fault.
        PlanNotWritten: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside where they will be, so that moving them copies nothing.
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
            f"cannot write a plan into {folder}: {error.strerror}; make it with `anabranch plan` where that can be done"
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
    """Takes the old manifest away first and puts the new one last: no moment has a manifest that is wrong."""
    (folder / PLAN_FILE).unlink(missing_ok=True)
    for old in folder.glob("stage-*.onnx*"):
        old.unlink()
    for stage in stages:
        for file in (data_path(stage.path), stage.path):
            if file.exists():
                file.rename(folder / file.name)
    written = stages[0].path.with_name(PLAN_FILE)
    written.write_bytes(encode_plan(plan))
    written.rename(folder / PLAN_FILE)
