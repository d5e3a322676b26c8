r"""A model's graph and its cuts.

    x --> (a) --> (b) --> (d) --> y        its cuts: {a}, {a, b}, {a, c}, {a, b, c}
           \--> (c) -----^

A set of nodes is an int: bit i stands for `nodes[i]`. A *cut* is a downset: a set with all predecessors of its nodes.
Stages copy constants, which are not nodes, and copied nodes: each stage runs those that it needs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import onnx

from anabranch.partition.errors import NoSuchCut, UncarriedTensor
from anabranch.partition.graph.external_data import check_external_data
from anabranch.partition.graph.model_file import read_model
from anabranch.partition.graph.nodes import Constant, Node, read_nodes
from anabranch.partition.graph.tensor_types import TensorType, infer_types, is_told, tensor_type
from anabranch.partition.profiling.runtime import runtime_types


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Tensor of no copied node; `made` is its maker's set, `leaves` marks outputs.

    Its readers include those that need it through copied nodes.
    """

    name: str
    made: int
    readers: int
    leaves: bool


@dataclass(frozen=True)
class Graph:
    """Graph of a model.

    Attributes:
        model: The file's content, without external data.
        nodes, constants: Those that outputs need, in topological order.
        inputs: Inputs without initializers.
        outputs: May be inputs or constants.
        copied: Set of nodes without outputs of the model. A cut holds those that its other nodes need.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    nodes: tuple[Node, ...] = field(repr=False)
    constants: tuple[Constant, ...] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    copied: int = 0

    @property
    def everything(self) -> int:
        """All nodes."""
        return (1 << len(self.nodes)) - 1

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto]:
        """Inferred types."""
        types = infer_types(self.model)
        untold = [name for node in self.nodes for name in node.makes if not is_told(types.get(name))]
        if untold:
            types |= runtime_types(self.model, self.path.parent, untold)
        return types

    def type_of(self, tensor: str) -> TensorType:
        """Return a tensor's type; raise UncarriedTensor."""
        return tensor_type(tensor, self.types.get(tensor))

    def is_downset(self, nodes: int) -> bool:
        """Tell if a set is a downset."""
        return all(node.predecessors & ~nodes == 0 for node in self.members(nodes))

    def prefixes(self) -> Iterator[int]:
        """Yield cuts in the order of `nodes`."""
        return ((1 << count) - 1 for count in range(1, len(self.nodes)))

    def crossing(self, downset: int) -> tuple[str, ...]:
        """List tensors across a cut."""
        rest = self.everything & ~downset
        return tuple(
            tensor.name
            for tensor in self._tensors
            if (not tensor.made or tensor.made & downset) and (tensor.leaves or tensor.readers & rest)
        )

    def obstacle(self, downset: int) -> str | None:
        """Explain an illegal cut; None for legal ones."""
        if not 0 < downset < self.everything or not self.is_downset(downset):
            return "not a cut: a stage would be empty, or read a tensor of a later one"
        for name in self.crossing(downset):
            try:
                self.type_of(name)
            except UncarriedTensor as error:
                return str(error)
        return None

    def parts(self, downsets: Iterable[int]) -> list[int]:
        """Compute the stages between cuts; raise NoSuchCut."""
        ends = [0, *downsets, self.everything]
        for number, (start, end) in enumerate(pairwise(ends)):
            if start & ~end or start == end:
                raise NoSuchCut(f"stage {number} would be empty: {len(self.nodes)} nodes, cut into {len(ends) - 1}")
            if not self.is_downset(end):
                raise NoSuchCut(f"stage {number} would read a tensor of a later stage: choose another cut")
        return [end & ~start for start, end in pairwise(ends)]

    def members(self, nodes: int) -> Iterator[Node]:
        """Yield a set's nodes in order."""
        return (self.nodes[index] for index in indices(nodes))

    def stage_inputs(self, part: int) -> tuple[str, ...]:
        """List a stage's inputs."""
        return tuple(tensor.name for tensor in self._tensors if tensor.readers & part and not tensor.made & part)

    def stage_outputs(self, part: int) -> tuple[str, ...]:
        """List a stage's outputs."""
        rest = self.everything & ~part
        return tuple(
            tensor.name for tensor in self._tensors if tensor.made & part and (tensor.leaves or tensor.readers & rest)
        )

    def stage_nodes(self, part: int) -> int:
        """Return a stage's nodes, with copies of earlier ones."""
        return part | sum(1 << node for node, needers in self._needers.items() if needers & part)

    def stage_constants(self, part: int) -> int:
        """Return a stage's constants."""
        needed = 0
        for node in self.members(self.stage_nodes(part)):
            needed |= node.constants
        return needed

    def parameter_bytes(self, part: int) -> int:
        """Sum a stage's weights."""
        return sum(self.constants[index].size_bytes for index in indices(self.stage_constants(part)))

    def constants_of(self, tensors: Iterable[str]) -> int:
        """Return the constants behind tensors."""
        needed = 0
        for name in tensors:
            needed |= self._constant_of.get(name, 0)
        return needed

    @cached_property
    def constant_outputs(self) -> tuple[str, ...]:
        """Outputs without inputs."""
        return tuple(name for name in self.outputs if name in self._constant_of)

    @cached_property
    def _tensors(self) -> tuple[_Tensor, ...]:
        readers: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.reads:
                readers[name] = readers.get(name, 0) | self._needers.get(index, 1 << index)
        outputs = set(self.outputs)
        made = [(name, 0) for name in self.inputs]
        made += [
            (name, 1 << index)
            for index, node in enumerate(self.nodes)
            for name in node.makes
            if not self.copied >> index & 1
        ]
        return tuple(_Tensor(name, maker, readers.get(name, 0), name in outputs) for name, maker in made)

    @cached_property
    def _needers(self) -> dict[int, int]:
        """Nodes that need each copied node, also through other copied ones."""
        needers = dict.fromkeys(indices(self.copied), 0)
        for index in reversed(range(len(self.nodes))):
            for before in indices(self.nodes[index].predecessors & self.copied):
                needers[before] |= needers.get(index, 1 << index)
        return needers

    @cached_property
    def _constant_of(self) -> dict[str, int]:
        return {name: constant.closure for constant in self.constants for name in constant.makes}


def indices(nodes: int) -> Iterator[int]:
    """Yield a set's indices, ascending."""
    while nodes:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest


def load_graph(path: Path) -> Graph:
    """Read a model's graph; raise ModelError."""
    model = read_model(path)
    check_external_data(model, path.parent)
    nodes, constants, inputs = read_nodes(model)
    outputs = tuple(dict.fromkeys(value.name for value in model.graph.output))
    return Graph(path, model, nodes, constants, inputs, outputs)
