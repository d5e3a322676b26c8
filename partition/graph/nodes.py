"""Reads nodes and constants of a model, in topological order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import onnx

from anabranch.partition.errors import InvalidModel
from anabranch.partition.graph.model_file import bodies, size_bytes

#: Random nodes must not be copied, though they may need no input.
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
#: Operators of other domains may be random.
_KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that depends on the model's inputs, or is random.

    Attributes:
        reads: Tensors that it and its bodies read, without constants.
        makes: Tensors that it outputs.
        predecessors: Set of nodes whose tensors it reads.
        constants: Set of constants that it needs, also indirectly.
        gives_the_same: It is not random, so that stages may copy it.
    """

    name: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    predecessors: int
    constants: int
    gives_the_same: bool
    proto: onnx.NodeProto = field(repr=False)


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer, or a deterministic node that depends on no input.

    Attributes:
        closure: Set of the constants that it needs, itself included.
        size_bytes: Size of stored values; 0 if computed.
    """

    makes: tuple[str, ...]
    closure: int
    size_bytes: int
    proto: onnx.TensorProto | onnx.SparseTensorProto | onnx.NodeProto = field(repr=False)


def read_nodes(model: onnx.ModelProto) -> tuple[tuple[Node, ...], tuple[Constant, ...], tuple[str, ...]]:
    """Read nodes, constants and inputs of a model; drop nodes that no output needs.

    Raises:
        InvalidModel: The model breaks a rule of ONNX.
    """
    file = model.graph
    stored: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {tensor.name: tensor for tensor in file.initializer}
    stored |= {tensor.values.name: tensor for tensor in file.sparse_initializer}
    inputs = tuple(value.name for value in file.input if value.name not in stored)
    given = {*stored, *inputs}
    reader = _Reader(model, stored, inputs)
    for position in _needed_in_order(model, _makers(model, given), given):
        reader.add(position)
    return tuple(reader.nodes), tuple(reader.constants), inputs


def outer_reads(node: onnx.NodeProto) -> list[str]:
    """List the tensors that a node and its bodies read from outside, each once."""
    reads = [name for name in node.input if name]
    for body in bodies(node):
        reads += _captured(body)
    return list(dict.fromkeys(reads))


def _captured(body: onnx.GraphProto) -> list[str]:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {tensor.values.name for tensor in body.sparse_initializer}
    own |= {name for node in body.node for name in node.output}
    reads = [name for node in body.node for name in outer_reads(node)] + [value.name for value in body.output]
    return [name for name in reads if name not in own]


def _makers(model: onnx.ModelProto, given: set[str]) -> dict[str, int]:
    makers: dict[str, int] = {}
    for position, node in enumerate(model.graph.node):
        for name in node.output:
            if name in makers or name in given:
                raise InvalidModel(f"tensor {name!r} is made twice: export the model again")
            if name:
                makers[name] = position
    return makers


def _needed_in_order(model: onnx.ModelProto, makers: dict[str, int], given: set[str]) -> list[int]:
    """List the positions of needed nodes in topological order; prefer the order of the file."""
    befores: dict[int, set[int]] = {}
    wanted = [(value.name, "the model outputs") for value in model.graph.output]
    while wanted:
        name, reader = wanted.pop()
        if name in given:
            continue
        if name not in makers:
            raise InvalidModel(f"{reader} {name!r}, which no node makes: export the model again")
        position = makers[name]
        if position not in befores:
            node = model.graph.node[position]
            reads = outer_reads(node)
            befores[position] = {makers[read] for read in reads if read in makers}
            wanted += [(read, f"{node_name(node, position)!r} reads") for read in reads]
    order = sorted(befores)
    if all(before < position for position in order for before in befores[position]):
        return order
    try:
        return list(TopologicalSorter(befores).static_order())
    except CycleError as error:
        stuck = min(error.args[1])
        name = node_name(model.graph.node[stuck], stuck)
        raise InvalidModel(f"the nodes form a cycle, {name!r} among them: export the model again") from None


def node_name(node: onnx.NodeProto, position: int) -> str:
    """Return a node's name, by default its operator and position."""
    return node.name or f"{node.op_type}_{position}"


class _Reader:
    def __init__(
        self,
        model: onnx.ModelProto,
        stored: Mapping[str, onnx.TensorProto | onnx.SparseTensorProto],
        inputs: Iterable[str],
    ) -> None:
        self.nodes: list[Node] = []
        self.constants: list[Constant] = []
        self._model = model
        self._functions = {(function.domain, function.name): function for function in model.functions}
        self._constant_of: dict[str, int] = {}
        self._maker_of = dict.fromkeys(inputs, 0)
        for name, tensor in stored.items():
            self._constant_of[name] = 1 << len(self.constants)
            self.constants.append(Constant((name,), self._constant_of[name], _stored_bytes(tensor), tensor))

    def add(self, position: int) -> None:
        proto = self._model.graph.node[position]
        reads = outer_reads(proto)
        constants = 0
        for name in reads:
            constants |= self._constant_of.get(name, 0)
        makes = tuple(name for name in proto.output if name)
        data = tuple(name for name in reads if name not in self._constant_of)
        gives_the_same = _gives_the_same(proto, self._functions)
        if not data and gives_the_same:
            constants |= 1 << len(self.constants)
            self._constant_of |= dict.fromkeys(makes, constants)
            self.constants.append(Constant(makes, constants, _value_bytes(proto), proto))
            return
        predecessors = 0
        for name in data:
            predecessors |= self._maker_of[name]
        self._maker_of |= dict.fromkeys(makes, 1 << len(self.nodes))
        name = node_name(proto, position)
        self.nodes.append(Node(name, proto.op_type, data, makes, predecessors, constants, gives_the_same, proto))


def _gives_the_same(node: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    function = functions.get((node.domain, node.op_type))
    if function is not None:
        return all(_gives_the_same(inner, functions) for inner in function.node)
    if node.domain not in _KNOWN_DOMAINS or node.op_type in _RANDOM:
        return False
    if node.op_type == "Dropout" and len(node.input) > 2:  # it may be in training mode
        return False
    return all(_gives_the_same(inner, functions) for body in bodies(node) for inner in body.node)


def _stored_bytes(tensor: onnx.TensorProto | onnx.SparseTensorProto) -> int:
    if isinstance(tensor, onnx.SparseTensorProto):
        return size_bytes(tensor.values) + size_bytes(tensor.indices)
    return size_bytes(tensor)


def _value_bytes(node: onnx.NodeProto) -> int:
    """Compute the size of a Constant node's value: some exporters store weights there."""
    return (
        sum(size_bytes(attribute.t) for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR)
        if node.op_type == "Constant"
        else 0
    )
