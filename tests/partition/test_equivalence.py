"""Equivalence: stages that differ from the model are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from anabranch.partition.errors import StageFailed, UnequalOutput, WholeModelFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.stages.equivalence import Tolerance, prove
from anabranch.partition.stages.writer import StageFile, write_stages
from tests.partition.texts import BRANCHES, graph_of

WEIGHTED = """
g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}, float[4] v = {1, 1, 1, 1}> {
    a = Mul(x, w)
    y = Add(a, v)
}
"""

#: Accepts any difference of finite values.
ANY_DIFFERENCE = {"float32": Tolerance(1.0, 1e30)}


def tamper(stage: StageFile, value: float) -> None:
    """Changes a stage's first weight."""
    model = onnx.load(stage.path)
    weight = model.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array[0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, stage.path)


def two_stages(folder: Path, text: str) -> tuple[Graph, tuple[StageFile, ...]]:
    graph = graph_of(folder, text)
    return graph, write_stages(graph, [0b1], folder)


def test_prove_equal_stages_passes_for_several_rows(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, BRANCHES)
    proof = prove(graph, stages)
    assert (proof.batches, proof.largest_difference, proof.output) == (3, 0.0, None)


def test_prove_difference_is_reported(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    tamper(stages[1], 1.5)
    with pytest.raises(
        UnequalOutput, match=r"output 'y' of x \[1, 4\] differs by up to 0.5, over the tolerance"
    ) as told:
        prove(graph, stages)
    assert "\n" not in str(told.value)


def test_prove_difference_in_tolerance_is_measured(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    tamper(stages[1], 1.5)
    proof = prove(graph, stages, tolerances={"float32": Tolerance(0.0, 0.6)})
    assert proof.largest_difference == pytest.approx(0.5, abs=1e-6)
    assert proof.output == "y"


def test_prove_noise_near_zero_is_relative_to_rms(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    tamper(stages[1], 1.5)
    noisy = {"x": np.array([[-1, 1000, 1000, 1000]], np.float32)}
    assert prove(graph, stages, [noisy]).largest_difference == 0.5
    small = {"x": np.array([[-1, 1, 1, 1]], np.float32)}
    with pytest.raises(UnequalOutput):
        prove(graph, stages, [small])


@pytest.mark.parametrize(
    ("value", "x"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (-np.inf, np.inf), (np.nan, np.inf)]
)
def test_prove_nan_and_infinity_differ_from_numbers(tmp_path: Path, value: float, x: float) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    tamper(stages[0], value)
    with pytest.raises(UnequalOutput):
        prove(graph, stages, [{"x": np.full((1, 4), x, np.float32)}], tolerances=ANY_DIFFERENCE)


def test_prove_nan_and_infinity_equal_themselves(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    batch = {"x": np.array([[np.inf, -np.inf, np.nan, 1]], np.float32)}
    assert prove(graph, stages, [batch]).largest_difference == 0.0


@pytest.mark.parametrize("datatype", ["int64", "bool", "string"])
def test_prove_other_datatypes_are_compared_exactly(tmp_path: Path, datatype: str) -> None:
    text = f"g ({datatype}[N, 2] x, {datatype}[N, 2] z) => ({datatype}[N, 2] y) {{ a = Identity(x) y = Identity(a) }}"
    graph, stages = two_stages(tmp_path, text)
    lying = replace(stages[1], inputs=("z",))
    model = onnx.load(stages[1].path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, stages[1].path)
    values = {"int64": [1, 2], "bool": [True, False], "string": ["a", "b"]}[datatype]
    dtype = np.dtype("object" if datatype == "string" else datatype)
    batch = {"x": np.array([values], dtype), "z": np.array([values], dtype)[:, ::-1]}
    with pytest.raises(UnequalOutput, match="differs in 2 of 2 elements"):
        prove(graph, (stages[0], lying), [batch])


def test_prove_other_shape_is_unequal(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, BRANCHES)
    model = onnx.load(stages[1].path)
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(onnx.helper.make_node("Transpose", ["z"], ["y"]))
    onnx.save(model, stages[1].path)
    with pytest.raises(UnequalOutput, match=r"is float32 \[1, 4\] in the whole model, and float32 \[4, 1\] in stages"):
        prove(graph, stages)


def test_prove_failing_stage_is_named(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, WEIGHTED)
    model = onnx.load(stages[1].path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "v"))
    onnx.save(model, stages[1].path)
    with pytest.raises(StageFailed, match="stage 1") as told:
        prove(graph, stages)
    assert "\n" not in str(told.value)
    stages[1].path.write_bytes(b"no model")
    with pytest.raises(StageFailed, match="stage 1 does not load"):
        prove(graph, stages)


def test_prove_failing_model_is_refused(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, BRANCHES)
    with pytest.raises(WholeModelFailed, match=r"the whole model on x \[2, 3\] does not run"):
        prove(graph, stages, [{"x": np.ones((2, 3), np.float32)}])
    graph.path.write_bytes(b"no model")
    with pytest.raises(WholeModelFailed, match="the whole model does not load"):
        prove(graph, stages)


def test_prove_suitable_inputs_are_searched(tmp_path: Path) -> None:
    graph, stages = two_stages(
        tmp_path,
        """g (int64[N] i, float[N, W] x) => (float[N, W] y) <float[2] table = {5, 6}, int64[1] one = {1}> {
            t = Gather(table, i) u = Unsqueeze(t, one) y = Add(u, x)
        }""",
    )
    assert prove(graph, stages).batches == 3


def test_prove_all_nan_outputs_are_refused(tmp_path: Path) -> None:
    graph, stages = two_stages(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { a = Sub(x, x) y = Div(a, a) }")
    with pytest.raises(WholeModelFailed, match=r"give real ones .* output 'y' is all NaN or infinite"):
        prove(graph, stages)
    # Given inputs may lead to it.
    assert prove(graph, stages, [{"x": np.ones((1, 4), np.float32)}]).batches == 1


def test_random_inputs_unsuitable_asks_for_real_ones(tmp_path: Path) -> None:
    text = "g (float[N, W] x) => (float[M, 7] y) <int64[2] wide = {-1, 7}> { a = Reshape(x, wide) y = Relu(a) }"
    graph, stages = two_stages(tmp_path, text)
    with pytest.raises(WholeModelFailed, match=r"give real ones \(`anabranch plan "):
        prove(graph, stages)
    batch = {"x": np.ones((2, 7), np.float32)}
    assert prove(graph, stages, [batch]).batches == 1
