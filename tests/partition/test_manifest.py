"""Manifests are written only for proven stages."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from anabranch.partition.errors import CutError, PartitionError, PlanNotWritten, ProofError
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.stages import manifest
from anabranch.partition.stages.equivalence import Proof
from anabranch.partition.stages.manifest import PLAN_FILE, StageCosts, write_plan
from anabranch.partition.stages.writer import StageFile, sha256_of, write_stages
from anabranch.schemas.stage_manifest import StageManifest, decode_manifest
from tests.partition.test_equivalence import tamper
from tests.partition.texts import BRANCHES, graph_of

WEIGHTED = "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { a = Neg(x) y = Mul(a, w) }"


def plan(graph: Graph, cuts: list[int], folder: Path) -> tuple[StageManifest, Proof]:
    costs = [StageCosts(ms=1.5 + i, output_bytes=100 * i, replicas=i + 1) for i in range(len(cuts) + 1)]
    return write_plan(graph, cuts, folder, rows=8, costs=costs, bottleneck_ms=2.5)


def test_write_plan_leaves_stages_and_manifest(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    folder = tmp_path / "new" / "plan"
    written, proof = plan(graph, [0b1, 0b11], folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        PLAN_FILE, "stage-0.onnx", "stage-1.onnx", "stage-2.onnx"
    ]  # fmt: skip
    assert decode_manifest((folder / PLAN_FILE).read_bytes()) == written
    assert (written.model_sha256, written.rows, written.bottleneck_ms) == (sha256_of(graph.path), 8, 2.5)
    last = written.stages[2]
    assert (last.inputs, last.outputs, last.nodes, last.parameter_bytes) == (("a", "b"), ("y",), 2, 0)
    assert (last.ms, last.output_bytes, last.replicas) == (3.5, 200, 3)
    assert all(sha256_of(folder / stage.file) == stage.sha256 for stage in written.stages)
    assert proof.batches == 3


def test_write_plan_replaces_an_earlier_one(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    plan(graph, [0b1, 0b11], tmp_path / "plan")
    written, _ = plan(graph, [0b11], tmp_path / "plan")
    assert len(list((tmp_path / "plan").iterdir())) == 3
    assert decode_manifest((tmp_path / "plan" / PLAN_FILE).read_bytes()) == written


def test_write_plan_failed_proof_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(tmp_path, WEIGHTED)

    def write_wrong_stages(graph: Graph, downsets: Sequence[int], folder: Path) -> tuple[StageFile, ...]:
        stages = write_stages(graph, downsets, folder)
        tamper(stages[1], 9.0)
        return stages

    plan(graph, [0b1], tmp_path / "earlier")
    before = {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()}
    monkeypatch.setattr(manifest, "write_stages", write_wrong_stages)
    for folder in (tmp_path / "earlier", tmp_path / "none"):
        with pytest.raises(ProofError):
            plan(graph, [0b1], folder)
    assert list((tmp_path / "none").iterdir()) == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()} == before


def test_write_plan_illegal_cut_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        plan(graph_of(tmp_path, BRANCHES), [0b10], tmp_path / "plan")
    assert list((tmp_path / "plan").iterdir()) == []


def test_write_plan_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanNotWritten, match=r"cannot write a plan into .*file: .* `anabranch plan --out DIR`"):
        plan(graph_of(tmp_path, BRANCHES), [0b1], tmp_path / "file")


def test_partition_errors_are_one_tree() -> None:
    assert all(issubclass(error, PartitionError) for error in (CutError, ProofError, PlanNotWritten))
