r"""A model's graph, and where it can be cut.

    x --> (a) --> (b) --> (d) --> y        nodes[0] = a, nodes[1] = b, ...: an order in which they can run
           \--> (c) -----^                 {a}, {a, b}, {a, c}, {a, b, c} are its cuts

A set of nodes is an int: bit i stands for `nodes[i]`. A *cut* is a downset: a set that holds, with each node, all that
this node needs. What runs before a cut is the downset, what runs after it is the rest; `crossing` names the tensors
that travel between. An If, Loop or Scan is one node: what its bodies read from outside is what the node reads.

What does not depend on the model's inputs (initializers, constants, whatever is computed of them alone) is no node
here: every stage that needs it gets a copy.
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
    """Attributes: made, the node that makes it, as a set, and empty for an input; readers; leaves, for an output."""

    name: str
    made: int
    readers: int
    leaves: bool


@dataclass(frozen=True)
class Graph:
    """A model's graph; `load_graph` makes one.

    Attributes:
        path: The model's file.
        model: What is in it; external data is not read.
        nodes: In an order in which they can run. What no output needs is left out.
        constants: In an order in which they can run.
        inputs: What the model takes; initializers that are inputs by name only left out.
        outputs: What it gives: tensors made by nodes, or inputs or constants as they are.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    nodes: tuple[Node, ...] = field(repr=False)
    constants: tuple[Constant, ...] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def everything(self) -> int:
        """All nodes."""
        return (1 << len(self.nodes)) - 1

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto]:
        """ONNX's type of every tensor, as far as it can be inferred without a run."""
        types = infer_types(self.model)
        untold = [name for node in self.nodes for name in node.makes if not is_told(types.get(name))]
        if untold:  # by an operator that ONNX does not define, and ONNX Runtime may
            types |= runtime_types(self.model, self.path.parent, untold)
        return types

    def type_of(self, tensor: str) -> TensorType:
        """What the wire carries of a tensor.

        Raises:
            UncarriedTensor: It cannot carry it.
        """
        return tensor_type(tensor, self.types.get(tensor))

    # ---- cuts ------------------------------------------------------------------------------------------------------

    def is_downset(self, nodes: int) -> bool:
        """Whether a set holds, with each node, all that this node needs."""
        return all(node.predecessors & ~nodes == 0 for node in self.members(nodes))

    def prefixes(self) -> Iterator[int]:
        """The cuts of the graph as a line: the first node, the first two, ... all but the last."""
        return ((1 << count) - 1 for count in range(1, len(self.nodes)))

    def crossing(self, downset: int) -> tuple[str, ...]:
        """The tensors that are there before a cut and needed after it, as inputs or as outputs of the model.

        Of the empty set: the model's inputs that are needed at all. Of all nodes: its outputs, constants left out.
        """
        rest = self.everything & ~downset
        return tuple(
            tensor.name
            for tensor in self._tensors
            if (not tensor.made or tensor.made & downset) and (tensor.leaves or tensor.readers & rest)
        )

    def obstacle(self, downset: int) -> str | None:
        """Why the model cannot be cut there, in one line; None where it can."""
        if not 0 < downset < self.everything or not self.is_downset(downset):
            return "it is no cut: a stage would be empty, or need what a later one makes"
        for name in self.crossing(downset):
            try:
                self.type_of(name)
            except UncarriedTensor as error:
                return str(error)
        return None

    def parts(self, downsets: Iterable[int]) -> list[int]:
        """The stages between cuts that follow one another: one more than there are cuts.

        Raises:
            NoSuchCut: The cuts do not follow one another, or one is none.
        """
        ends = [0, *downsets, self.everything]
        for number, (start, end) in enumerate(pairwise(ends)):
            if start & ~end or start == end:
                raise NoSuchCut(f"stage {number} would be empty: {len(self.nodes)} nodes, cut into {len(ends) - 1}")
            if not self.is_downset(end):
                raise NoSuchCut(f"stage {number} would need what a later stage makes")
        return [end & ~start for start, end in pairwise(ends)]

    # ---- stages ----------------------------------------------------------------------------------------------------

    def members(self, nodes: int) -> Iterator[Node]:
        """The nodes of a set, in their order."""
        return (self.nodes[index] for index in indices(nodes))

    def stage_inputs(self, part: int) -> tuple[str, ...]:
        """The tensors that a stage's own nodes need and do not make."""
        return tuple(tensor.name for tensor in self._tensors if tensor.readers & part and not tensor.made & part)

    def stage_outputs(self, part: int) -> tuple[str, ...]:
        """The tensors that a stage's nodes make and others need, or the model gives."""
        rest = self.everything & ~part
        return tuple(
            tensor.name for tensor in self._tensors if tensor.made & part and (tensor.leaves or tensor.readers & rest)
        )

    def stage_constants(self, part: int) -> int:
        """Which of `constants` a stage holds, as a set."""
        needed = 0
        for node in self.members(part):
            needed |= node.constants
        return needed

    def parameter_bytes(self, part: int) -> int:
        """Size of the weights that a stage holds, each once; what is computed of them does not count."""
        return sum(self.constants[index].size_bytes for index in indices(self.stage_constants(part)))

    def constants_of(self, tensors: Iterable[str]) -> int:
        """Which of `constants` give these tensors, and what those are computed of; other tensors do not count."""
        needed = 0
        for name in tensors:
            needed |= self._constant_of.get(name, 0)
        return needed

    @cached_property
    def constant_outputs(self) -> tuple[str, ...]:
        """The model's outputs that depend on no input: the last stage gives them, and nothing of them travels."""
        return tuple(name for name in self.outputs if name in self._constant_of)

    # ---- what is worked out once -----------------------------------------------------------------------------------

    @cached_property
    def _tensors(self) -> tuple[_Tensor, ...]:
        readers: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.reads:
                readers[name] = readers.get(name, 0) | 1 << index
        outputs = set(self.outputs)
        made = [(name, 0) for name in self.inputs]
        made += [(name, 1 << index) for index, node in enumerate(self.nodes) for name in node.makes]
        return tuple(_Tensor(name, maker, readers.get(name, 0), name in outputs) for name, maker in made)

    @cached_property
    def _constant_of(self) -> dict[str, int]:
        return {name: constant.closure for constant in self.constants for name in constant.makes}


def indices(nodes: int) -> Iterator[int]:
    """The places of a set's nodes, ascending."""
    while nodes:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest


def load_graph(path: Path) -> Graph:
    """The graph of the model in a file; weights that lie beside it are not read.

    Raises:
        UnreadableModel: The file or its external data is missing, too large, or no ONNX model.
        UnsafeModel: Its external data lies where it must not.
        InvalidModel: It breaks a rule of ONNX.
    """
    model = read_model(path)
    check_external_data(model, path.parent)
    nodes, constants, inputs = read_nodes(model)
    outputs = tuple(dict.fromkeys(value.name for value in model.graph.output))
    return Graph(path, model, nodes, constants, inputs, outputs)
