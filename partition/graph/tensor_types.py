"""Types of tensors, as far as they are known without a run."""

from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto

from anabranch.partition.errors import UncarriedTensor
from anabranch.schemas.tensors import BYTES, NUMPY_DTYPES

#: Datatypes of the protocol by ONNX's element type.
DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: BYTES,
}

#: Larger initializers are left out of shape inference.
_SMALL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor that the wire can carry.

    Attributes:
        datatype: The protocol's name.
        shape: Axes as size, name or None; None for an unknown rank.
    """

    datatype: str
    shape: tuple[int | str | None, ...] | None

    def size_bytes(self, rows: int) -> int | None:
        """Compute its size if an open axis 0 counts `rows`; None if it is unknown."""
        if self.shape is None or self.datatype == BYTES:
            return None
        axes = (rows, *self.shape[1:]) if self.shape and not isinstance(self.shape[0], int) else self.shape
        if not all(isinstance(axis, int) for axis in axes):
            return None
        return prod(axis for axis in axes if isinstance(axis, int)) * NUMPY_DTYPES[self.datatype].itemsize


def tensor_type(name: str, proto: onnx.TypeProto | None) -> TensorType:
    """Convert ONNX's type; raise UncarriedTensor if the wire cannot carry it."""
    kind = proto.WhichOneof("value") if proto is not None else None
    if proto is None or kind is None:
        raise UncarriedTensor(f"{name!r} cannot travel: its type is unknown without a run")
    if kind != "tensor_type":
        raise UncarriedTensor(
            f"{name!r} cannot travel: its type is {kind.removesuffix('_type').replace('_', ' ')}, expected a tensor"
        )
    datatype = DATATYPES.get(proto.tensor_type.elem_type)
    if datatype is None:
        element = TensorProto.DataType.Name(proto.tensor_type.elem_type)
        raise UncarriedTensor(f"{name!r} cannot travel: it is a tensor of {element}, which the protocol does not have")
    if not proto.tensor_type.HasField("shape"):
        return TensorType(datatype, None)
    return TensorType(datatype, tuple(_axis(axis) for axis in proto.tensor_type.shape.dim))


def is_told(proto: onnx.TypeProto | None) -> bool:
    """Tell if a type is known."""
    return proto is not None and proto.WhichOneof("value") is not None


def _axis(axis: onnx.TensorShapeProto.Dimension) -> int | str | None:
    match axis.WhichOneof("value"):
        case "dim_value":
            return axis.dim_value if axis.dim_value >= 0 else None
        case "dim_param":
            return axis.dim_param
        case _:
            return None


def infer_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Infer the types of tensors; named axes keep their names.

    A declared type counts only if nothing can be inferred, and without its axes, since tools that open a model's batch
    axis often leave wrong shapes of inner tensors.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = onnx.GraphProto()
    types = {value.name: value.type for value in (*inferred.value_info, *inferred.output, *model.graph.input)}
    types |= {tensor.name: _type_of(tensor) for tensor in model.graph.initializer}
    types |= {tensor.values.name: _type_of(tensor) for tensor in model.graph.sparse_initializer}
    for value in (*model.graph.value_info, *model.graph.output):
        if not is_told(types.get(value.name)):
            types[value.name] = _without_axes(value.type)
    return types


def _type_of(tensor: onnx.TensorProto | onnx.SparseTensorProto) -> onnx.TypeProto:
    values = tensor.values if isinstance(tensor, onnx.SparseTensorProto) else tensor
    return onnx.helper.make_tensor_type_proto(values.data_type, tensor.dims)


def _without_axes(proto: onnx.TypeProto) -> onnx.TypeProto:
    bare = onnx.TypeProto()
    bare.CopyFrom(proto)
    if bare.WhichOneof("value") == "tensor_type":
        bare.tensor_type.ClearField("shape")
    return bare


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    made = {name for node in model.graph.node for name in node.output}
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=model.graph.node,
        input=model.graph.input,
        output=[
            onnx.ValueInfoProto(name=value.name, type=_without_axes(value.type)) if value.name in made else value
            for value in model.graph.output
        ],
        sparse_initializer=model.graph.sparse_initializer,
    )
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL_BYTES:
            graph.initializer.append(tensor)
        else:
            bare = graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            bare.data_location = TensorProto.EXTERNAL
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
    )
