"""The models of stages."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from anabranch.partition.errors import NoSuchCut, UncarriedTensor
from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.stages.equivalence import prove
from anabranch.partition.stages.writer import StageFile, data_path, sha256_of, write_stages
from anabranch.schemas.stage_manifest import DATA_SHA256
from anabranch.schemas.tensors import Array
from tests.partition.texts import BRANCHES, SHAPES, graph_of, model_of

SHARED = """
g (float[batch, 4] x) => (float[batch, 4] y, float[4] w) <float[4] w = {1, 2, 3, 4}, float late = {3}> {
    two = Constant <value = float {2}> ()
    double = Mul(w, two)
    a = Add(x, double)
    b = Mul(a, w)
    y = Sub(b, late)
}
"""


def cut(graph: Graph, folder: Path, downsets: list[int]) -> list[onnx.ModelProto]:
    stages = write_stages(graph, downsets, folder)
    assert [stage.path for stage in stages] == [folder / f"stage-{i}.onnx" for i in range(len(downsets) + 1)]
    models = [onnx.load(stage.path) for stage in stages]
    for stage, model in zip(stages, models, strict=True):
        onnx.checker.check_model(model, full_check=True)
        assert tuple(value.name for value in model.graph.output) == stage.outputs
        assert sha256_of(stage.path) == stage.sha256 == hashlib.sha256(stage.path.read_bytes()).hexdigest()
    return models


def names(values: onnx.GraphProto, field: str) -> list[str]:
    return [value.name for value in getattr(values, field)]


def save(model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(model, folder / "model.onnx")
    return load_graph(folder / "model.onnx")


def test_stage_ends_are_those_of_its_nodes(tmp_path: Path) -> None:
    first, second, third = (model.graph for model in cut(graph_of(tmp_path, BRANCHES), tmp_path, [0b1, 0b11]))
    assert (names(first, "input"), names(first, "output")) == (["x"], ["a"])
    assert (names(second, "input"), names(second, "output")) == (["a"], ["b"])
    assert (names(third, "input"), names(third, "output")) == (["a", "b"], ["y"])
    axes = first.output[0].type.tensor_type.shape.dim
    assert (axes[0].dim_param, axes[1].dim_value) == ("N", 4)


def test_stage_constants_are_copied_to_each_user(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, SHARED)
    first, second, third = (model.graph for model in cut(graph, tmp_path, [0b1, 0b11]))
    assert (names(first, "initializer"), [node.op_type for node in first.node]) == (["w"], ["Constant", "Mul", "Add"])
    assert (names(second, "initializer"), [node.op_type for node in second.node]) == (["w"], ["Mul"])
    assert names(third, "initializer") == ["w", "late"]
    assert names(third, "output") == ["y", "w"]
    stages = write_stages(graph, [0b1, 0b11], tmp_path)
    assert [(stage.nodes, stage.parameter_bytes) for stage in stages] == [(1, 20), (1, 16), (1, 4)]


def test_stage_copied_nodes_run_where_they_are_needed(tmp_path: Path) -> None:
    graph = replace(graph_of(tmp_path, SHAPES), copied=0b1)
    first, second = (model.graph for model in cut(graph, tmp_path, [0b1110]))
    assert [node.op_type for node in first.node] == ["Mul", "Reshape", "Softmax"]
    assert (names(first, "input"), names(first, "output")) == (["x"], ["c"])
    assert [node.op_type for node in second.node] == ["Shape", "Reshape", "Mul", "Reshape"]
    assert names(second, "input") == ["x", "c"]
    assert graph.crossing(0b1110) == ("x", "c")
    stages = write_stages(graph, [0b1110, 0b11111], tmp_path)
    assert [stage.nodes for stage in stages] == [3, 2, 2]
    assert [len(onnx.load(stage.path).graph.node) for stage in stages] == [3, 2, 3]
    assert prove(graph, stages).batches == 3


def test_stage_metadata_and_functions_are_kept(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "own" : 1], producer_name: "somebody", model_version: 7>
        g (float[N, 4] x) => (float[N, 4] y) { a = own.twice(x) y = Relu(a) }
        <domain: "own", opset_import: ["" : 17]> twice (c) => (r) { r = Add(c, c) }"""
    )
    helper.set_model_props(model, {"licence": "free"})
    model.graph.doc_string = "what it is for"
    for whole in cut(save(model, tmp_path), tmp_path, [0b1]):
        for field in ("ir_version", "opset_import", "producer_name", "model_version", "functions", "metadata_props"):
            assert getattr(whole, field) == getattr(model, field)
        assert (whole.graph.name, whole.graph.doc_string) == ("g", "what it is for")


def test_stage_quantization_annotations_are_kept(tmp_path: Path) -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Neg(a) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "a_scale"))
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="a_scale")
    first, second = (stage.graph for stage in cut(save(model, tmp_path), tmp_path, [0b1]))
    assert (len(first.quantization_annotation), names(first, "initializer")) == (0, [])
    assert list(second.quantization_annotation) == [annotation]
    assert names(second, "initializer") == ["a_scale"]


def test_stage_old_ir_version_lists_weights_as_inputs(tmp_path: Path) -> None:
    text = "g (float[N] x, float[1] w, float[1] v) => (float[N] y) { a = Add(x, w) y = Mul(a, v) }"
    model = model_of(text, ir_version=3, opset=9)
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(1, np.float32), name) for name in "wv")
    first, second = cut(save(model, tmp_path), tmp_path, [0b1])
    assert (names(first.graph, "input"), names(second.graph, "input")) == (["x", "w"], ["a", "v"])
    session = onnxruntime.InferenceSession(second.SerializeToString())
    assert [node.name for node in session.get_inputs()] == ["a"]


def test_stage_body_keeps_its_outer_tensors(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (bool b, float[N] x) => (float[N] y) <float[1] w = {1}> {
            a = Relu(x)
            c = If (b) <then_branch = t () => (float[N] r) { r = Add(a, w) },
                        else_branch = e () => (float[N] u) { u = Identity(a) }>
            y = Neg(c)
        }""",
    )
    _, second, _ = cut(graph, tmp_path, [0b1, 0b11])
    assert (names(second.graph, "input"), names(second.graph, "initializer")) == (["b", "a"], ["w"])
    assert prove(graph, write_stages(graph, [0b1, 0b11], tmp_path)).batches == 1


@pytest.mark.parametrize("datatype", ["string", "bool", "float16", "int64", "uint8"])
def test_stage_every_wire_datatype_crosses(tmp_path: Path, datatype: str) -> None:
    text = f"g ({datatype}[N, 2] x) => ({datatype}[N, 2] y) {{ a = Identity(x) y = Identity(a) }}"
    graph = graph_of(tmp_path, text)
    assert prove(graph, write_stages(graph, [0b1], tmp_path)).batches == 3


def test_stage_type_of_custom_operator_is_from_runtime(tmp_path: Path) -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.Gelu(x) y = Neg(a) }")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph = save(model, tmp_path)
    stages = write_stages(graph, [0b1], tmp_path)
    axes = onnx.load(stages[1].path).graph.input[0].type.tensor_type.shape.dim
    assert (axes[0].dim_param, axes[1].dim_value) == ("N", 4)
    assert prove(graph, stages).batches == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N] x) => (int64 y) { s = SequenceConstruct(x) y = SequenceLength(s) }", "its type is sequence"),
        ("g (float[N] x) => (seq(float[N]) s) { a = Relu(x) s = SequenceConstruct(a) }", "its type is sequence"),
        ("g (bfloat16[N] x) => (float[N] y) { a = Cast <to = 1> (x) y = Relu(a) }", "it is a tensor of BFLOAT16"),
    ],
)  # fmt: skip
def test_write_stages_uncarried_tensor_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    graph = graph_of(tmp_path, text)
    with pytest.raises(UncarriedTensor, match=f"cannot travel: {reason}"):
        write_stages(graph, [0b1], tmp_path)
    assert not list(tmp_path.glob("stage*"))


def test_write_stages_more_than_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSuchCut, match="stage 1 would be empty: 4 nodes, cut into 5"):
        write_stages(graph_of(tmp_path, BRANCHES), [0b1, 0b1, 0b11, 0b111], tmp_path)


# ---- external data -------------------------------------------------------------------------------------------------


def heavy_model() -> onnx.ModelProto:
    """Weights in every form that a file has for them."""
    model = model_of(
        """g (float[N, 32] x) => (float[N, 32] y) {
            a = MatMul(x, raw) b = Add(a, typed) c = Add(b, small)
            big = Constant() d = MatMul(c, big) y = MatMul(d, raw)
        }"""
    )
    rng = np.random.default_rng(0)
    square = rng.standard_normal((32, 32)).astype(np.float32)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(square, "raw"),
            helper.make_tensor("typed", TensorProto.FLOAT, [32, 32], square.T.ravel()),
            numpy_helper.from_array(np.ones(32, np.float32), "small"),
        ]
    )
    model.graph.node[3].attribute.append(helper.make_attribute("value", numpy_helper.from_array(square + 1, "value")))
    return model


@pytest.mark.parametrize("external_before", [False, True])
@pytest.mark.parametrize("external_after", [False, True])
def test_stage_many_weights_are_external(tmp_path: Path, external_before: bool, external_after: bool) -> None:
    model = heavy_model()
    path = tmp_path / "model.onnx"
    if external_before:
        onnx.external_data_helper.convert_model_to_external_data(
            model, location="weights", size_threshold=64, convert_attribute=True
        )
    onnx.save(model, path)
    graph = load_graph(path)
    batch: dict[str, Array] = {"x": np.ones((32, 32), np.float32)}
    folder = tmp_path / "stages"
    folder.mkdir()
    limit = 100 if external_after else 1 << 30
    stages = write_stages(graph, [0b1, 0b111], folder, max_inline_bytes=limit)
    assert [stage.parameter_bytes for stage in stages] == [4096, 4096 + 128, 4096 + 4096]
    assert [data_path(stage.path).exists() for stage in stages] == [external_after] * 3
    assert prove(graph, stages, [batch]).largest_difference < 1e-2
    if external_after:
        assert_data_is_as_said(stages[1])


def assert_data_is_as_said(stage: StageFile) -> None:
    model = onnx.load(stage.path, load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said[DATA_SHA256] == sha256_of(data_path(stage.path))
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert [tensor.name for tensor in external] == ["typed"]
    entries = {entry.key: entry.value for entry in external[0].external_data}
    assert (entries["location"], int(entries["offset"]) % 4096) == (data_path(stage.path).name, 0)


def test_write_stages_model_named_like_stage_works(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(heavy_model(), path, save_as_external_data=True, location="stage-0.onnx.data", size_threshold=64)
    graph = load_graph(path)
    folder = tmp_path / "stages"
    folder.mkdir()
    stages = write_stages(graph, [0b1], folder, max_inline_bytes=5000)
    assert [data_path(stage.path).exists() for stage in stages] == [False, True]
    assert prove(graph, stages, [{"x": np.ones((32, 32), np.float32)}]).batches == 1
