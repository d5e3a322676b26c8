from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from anabranch.schemas.tensors import Array
from bench.workloads.docstrings import FLOATS, INTEGERS, add_text_models, docstrings, not_padded, with_floats


def in_bytes() -> onnx.ModelProto:
    """x times a matrix that is stored as bytes and a scale for each column."""
    rng = np.random.default_rng(1)
    weights, scales = rng.integers(-127, 128, (4, 3)), rng.random((1, 3))
    nodes = [
        helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Mul", ["product", "two"], ["y"]),
    ]
    stored: list[Array] = [weights.astype(np.int8), scales.astype(np.float32), np.array([2], np.float32)]
    initializers = [numpy_helper.from_array(a, name) for a, name in zip(stored, ("q", "scale", "two"), strict=True)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "bytes", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_bytes_become_the_floats_that_they_mean() -> None:
    x = np.random.default_rng(2).random((2, 4), np.float32)
    before = onnxruntime.InferenceSession(in_bytes().SerializeToString()).run(None, {"x": x})[0]
    model = with_floats(in_bytes())
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Mul"]
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {
        "w": TensorProto.FLOAT,
        "two": TensorProto.FLOAT,
    }
    assert np.allclose(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0], before)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_docstrings_are_real_texts_of_many_lengths(tmp_path: Path) -> None:
    repository = add_text_models(tmp_path)
    padded, apart = docstrings(repository, FLOATS, 60)
    lengths = [len(answer) // 384 for answer in padded.answers]
    assert min(lengths) < 12
    assert max(lengths) == 128, "the tokenizer cuts there"
    assert len(set(lengths)) > 20
    assert FLOATS.encode() in padded.message(0)
    assert not_padded(FLOATS).encode() in apart.message(0)
    operators = {node.op_type for node in onnx.load(repository / INTEGERS / "1" / "model.onnx").graph.node}
    assert "DynamicQuantizeLinear" in operators
