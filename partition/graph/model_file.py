"""Reads ONNX files, which may be hostile, without their external data."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from anabranch.partition.errors import UnreadableModel

#: Protobuf's limit.
MAX_FILE_BYTES = 2**31 - 1


def read_model(path: Path) -> onnx.ModelProto:
    """Read the model in a file, without external data.

    Raises:
        UnreadableModel: The file is missing, too large, or not an ONNX model.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnreadableModel(f"{path} is over 2 GiB: save its weights as external data")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise UnreadableModel(f"cannot read the model {path}: {error.strerror}") from None
    except DecodeError:
        raise UnreadableModel(f"{path} is not an ONNX model: export the model again") from None
    if not model.opset_import or not model.graph.output:
        raise UnreadableModel(
            f"{path} is not an ONNX model: it has no operator set or no output; export the model again"
        )
    return model


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the direct bodies of an If, Loop, Scan or SequenceMap."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def size_bytes(tensor: onnx.TensorProto) -> int:
    """Compute the size of a tensor's values."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    elements = 1
    for axis in tensor.dims:
        elements *= axis
    return (elements * _BITS.get(tensor.data_type, 8) + 7) // 8


_BITS = {
    number: 4 if name in {"INT4", "UINT4", "FLOAT4E2M1"} else onnx.helper.tensor_dtype_to_np_dtype(number).itemsize * 8
    for name, number in onnx.TensorProto.DataType.items()
    if name not in {"UNDEFINED", "STRING"}
}
