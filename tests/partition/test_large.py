"""Models with many nodes, and models with many weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anabranch.partition.graph.model_file import MAX_FILE_BYTES
from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.stages.equivalence import prove
from anabranch.partition.stages.writer import data_path, write_stages

WIDTH = 8192
MATRIX_BYTES = WIDTH * WIDTH * 4


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A chain of 2,000 nodes in which two tensors cross each cut."""
    path = tmp_path_factory.mktemp("deep") / "model.onnx"
    nodes, current, skipped = [], "x", "x"
    for i in range(1000):
        nodes.append(helper.make_node("Mul", [current, "w"], [f"m{i}"]))
        nodes.append(helper.make_node("Sub", [skipped, f"m{i}"], [f"s{i}"]))
        current, skipped = f"s{i}", current
    nodes[-1].output[0] = "y"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.linspace(-0.9, 0.9, 8, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "deep", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load_graph(path)


@pytest.fixture(scope="module")
def legal(deep: Graph) -> list[int]:
    return [downset for downset in deep.prefixes() if deep.obstacle(downset) is None]


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_large_deep_model_stages_equal_it(deep: Graph, legal: list[int], stages: int, tmp_path: Path) -> None:
    assert len(deep.nodes) == 2000
    assert len(legal) == 1999
    cuts = [legal[len(legal) * number // stages] for number in range(1, stages)]
    assert prove(deep, write_stages(deep, cuts, tmp_path)).batches == 3


@pytest.mark.zoo
@pytest.mark.timeout(600)
def test_large_model_over_two_gigabytes_is_cut(tmp_path: Path) -> None:
    """Nine matrices of 256 MiB in a sparse file; the first stage alone has more than 2 GiB."""
    weights = tmp_path / "weights.bin"
    with weights.open("wb") as file:
        file.truncate(9 * MATRIX_BYTES)
    on_disk = np.memmap(weights, np.float32, "r+", shape=(9, WIDTH, WIDTH))
    for number in range(9):  # each moves its input by one place
        on_disk[number, np.arange(64), np.arange(64) - 1] = 1
    on_disk.flush()
    del on_disk
    path = tmp_path / "model.onnx"
    path.write_bytes(chain_of_matrices(weights.name).SerializeToString())
    graph = load_graph(path)
    folder = tmp_path / "stages"
    folder.mkdir()
    first, second = write_stages(graph, [(1 << 8) - 1], folder)
    assert (first.parameter_bytes, second.parameter_bytes) == (8 * MATRIX_BYTES, MATRIX_BYTES)
    assert data_path(first.path).stat().st_size > MAX_FILE_BYTES
    assert not data_path(second.path).exists()
    batch = {"x": np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)}
    assert prove(graph, [first, second], [batch]).largest_difference == 0.0


def chain_of_matrices(location: str) -> onnx.ModelProto:
    nodes, tensors = [], []
    for number in range(9):
        before, after = "x" if number == 0 else f"h{number}", "y" if number == 8 else f"h{number + 1}"
        nodes.append(helper.make_node("MatMul", [before, f"w{number}"], [after]))
        tensor = TensorProto(name=f"w{number}", dims=[WIDTH, WIDTH], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": location, "offset": number * MATRIX_BYTES, "length": MATRIX_BYTES}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
