"""Finds the range of integer inputs in a graph: indices of a table, entries of a sequence."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from anabranch.partition.graph.model_file import bodies

#: Nodes that keep the values of their first input.
_FORWARDS = {
    *("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice", "Clip"),
    *("DequantizeLinear", "Concat", "Split", "Tile", "Pad"),
}
#: Position of indices and of their table.
_TABLES = {
    "Gather": ((1, 0),),
    "GatherElements": ((1, 0),),
    "GatherND": ((1, 0),),
    "GatherBlockQuantized": ((1, 0),),
    "EmbedLayerNormalization": ((0, 2), (1, 4)),
    "QEmbedLayerNormalization": ((0, 2), (1, 4)),
}
#: Position of the lengths of sequences.
_LENGTHS = {"LSTM": 4, "GRU": 4, "RNN": 4, "ReverseSequence": 1}


@dataclass(frozen=True, slots=True)
class InputRange:
    """Values of an integer input: below `end`, or numbers of entries of an axis."""

    end: int | None = None
    is_length: bool = False


def input_ranges(model: onnx.ModelProto) -> dict[str, InputRange]:
    """Return the ranges of inputs that the graph tells."""
    nodes = list(_nodes(model.graph))
    constants = _constants(model.graph, nodes)
    found = {}
    for value in model.graph.input:
        names = _carriers(value.name, nodes)
        ends = [end for node in nodes for end in _ends(node, names, constants)]
        is_length = any(node.op_type in _LENGTHS and _input(node, _LENGTHS[node.op_type]) in names for node in nodes)
        if ends or is_length:
            found[value.name] = InputRange(min(ends, default=None), is_length)
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from _nodes(body)


def _input(node: onnx.NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _carriers(name: str, nodes: list[onnx.NodeProto]) -> set[str]:
    names = {name}
    for node in nodes:  # In topological order.
        if node.op_type in _FORWARDS and not names.isdisjoint(
            node.input[:1] if node.op_type != "Concat" else node.input
        ):
            names.update(node.output)
    return names


def _constants(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in nodes:
        if node.op_type == "Constant":
            constants.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
        elif node.op_type in {"Identity", "Cast", "DequantizeLinear"} and _input(node, 0) in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _ends(node: onnx.NodeProto, names: set[str], constants: dict[str, onnx.TensorProto]) -> Iterator[int]:
    for indices, table in _TABLES.get(node.op_type, ()):
        tensor = constants.get(_input(node, table))
        if _input(node, indices) in names and tensor is not None and tensor.dims:
            axis = next((attribute.i for attribute in node.attribute if attribute.name in {"axis", "gather_axis"}), 0)
            yield min(tensor.dims) if node.op_type == "GatherND" else tensor.dims[axis]
    depth = constants.get(_input(node, 1))
    if node.op_type == "OneHot" and _input(node, 0) in names and depth is not None:
        yield int(onnx.numpy_helper.to_array(depth).flat[0])
