"""Types of tensors before a run."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, TypeProto, helper, numpy_helper

from anabranch.partition.errors import UncarriedTensor
from anabranch.partition.graph.tensor_types import DATATYPES, TensorType, infer_types, tensor_type
from anabranch.schemas.tensors import DATATYPES as CARRIED
from tests.partition.texts import graph_of, model_of


def test_tensor_type_all_wire_datatypes_are_carried() -> None:
    assert set(DATATYPES.values()) == CARRIED


def test_infer_types_axis_names_are_kept(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (float[batch, 3, 8, 8] x) => (float[batch, k] y) <int64[2] shape = {0, -1}> {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            y = Reshape(pooled, shape)
        }""",
    )
    assert graph.type_of("pooled") == TensorType("FP32", ("batch", 3, 4, 4))
    assert graph.type_of("pooled").size_bytes(10) == 10 * 3 * 16 * 4
    assert graph.type_of("y").shape == ("batch", 48)


@pytest.mark.parametrize(
    ("datatype", "shape", "size_bytes"),
    [
        ("FP16", (None, 3), 42),
        ("INT64", ("n", 3), 168),
        ("BOOL", (5,), 5),
        ("FP64", (), 8),
        ("FP32", None, None),
        ("FP32", ("n", "width"), None),
        ("BYTES", ("n", 3), None),
    ],
)
def test_tensor_type_open_rows_have_a_size(
    datatype: str, shape: tuple[int | str | None, ...] | None, size_bytes: int | None
) -> None:
    assert TensorType(datatype, shape).size_bytes(7) == size_bytes


def test_tensor_type_axes_are_sizes_names_or_open() -> None:
    proto = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "n", None, -1])
    assert tensor_type("t", proto) == TensorType("FP32", (2, "n", None, None))
    assert tensor_type("t", helper.make_tensor_type_proto(TensorProto.STRING, None)) == TensorType("BYTES", None)


@pytest.mark.parametrize("proto", [None, TypeProto()])
def test_tensor_type_unknown_is_not_carried(proto: TypeProto | None) -> None:
    with pytest.raises(UncarriedTensor, match="'t' cannot travel: its type is unknown"):
        tensor_type("t", proto)


def test_infer_types_inferred_beats_declared() -> None:
    model = model_of("g (float[N, 4] x) => (float[1, 4] y) { a = Relu(x) b = foreign.Op(a) y = Neg(a) }")
    model.opset_import.append(helper.make_opsetid("foreign", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4]))
    types = infer_types(model)
    assert tensor_type("a", types["a"]).shape == ("N", 4)
    assert tensor_type("y", types["y"]).shape == ("N", 4)
    assert tensor_type("b", types["b"]).shape is None


def test_infer_types_only_small_weights_are_used() -> None:
    model = model_of("g (float[N, 512] x) => (float[N, M] y) { a = MatMul(x, w) y = Reshape(a, shape) }")
    weights = numpy_helper.from_array(np.zeros((512, 64), np.float32), "w")
    model.graph.initializer.extend([weights, numpy_helper.from_array(np.array([-1, 32]), "shape")])
    types = infer_types(model)
    assert tensor_type("a", types["a"]).shape == ("N", 64)
    assert (tensor_type("y", types["y"]).shape or ())[1] == 32
    assert tensor_type("w", types["w"]).shape == (512, 64)
