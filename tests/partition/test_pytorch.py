"""A transformer as PyTorch exports it (`make frameworks`)."""

import subprocess
from pathlib import Path

import pytest

from anabranch.partition.graph.model_graph import load_graph
from anabranch.partition.stages.equivalence import prove
from anabranch.partition.stages.writer import write_stages
from deploy.environments import environment
from tests.partition.test_balance import even_plan
from tests.partition.test_zoo import even_cuts, stages_of

HERE = Path(__file__).parent

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer") / "model.onnx"
    python = environment("import-pytorch", HERE.parent / "importing" / "pytorch.lock")
    subprocess.run([str(python), str(HERE / "pytorch_transformer.py"), str(path)], check=True, capture_output=True)
    return path


@stages_of
def test_transformer_has_even_stages(transformer: Path, stages: int, tmp_path: Path) -> None:
    graph, placement = even_plan(load_graph(transformer), stages)
    assert prove(graph, write_stages(graph, placement.downsets, tmp_path)).batches == 3


@stages_of
def test_transformer_stages_equal_the_model(transformer: Path, stages: int, tmp_path: Path) -> None:
    graph = load_graph(transformer)
    assert graph.inputs == ("tokens", "mask")
    files = write_stages(graph, even_cuts(graph, stages), tmp_path)
    # The matrix of words is at both ends.
    assert sum(file.parameter_bytes for file in files) >= graph.parameter_bytes(graph.everything) + 200 * 64 * 4
    assert prove(graph, files).batches == 3
