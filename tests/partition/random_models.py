"""Random models whose floats stay small whole numbers: however their operators are joined, the result is exact."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from anabranch.partition.graph.nodes import outer_reads

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
#: Kind of tensor -> its element type and its second axis; a "list" is a sequence of floats.
KINDS = {"float": (FLOAT, 4), "half": (FLOAT, 2), "int": (INT64, 4), "bool": (BOOL, 4), "text": (STRING, 4)}


@dataclass
class Draft:
    """A model under construction."""

    draw: st.DrawFn
    tensors: dict[str, list[str]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def there(self, kind: str, name: str) -> str:
        self.tensors.setdefault(kind, []).append(name)
        return name

    def pick(self, kind: str) -> str:
        return self.draw(st.sampled_from(self.tensors[kind]))

    def make(self, op_type: str, inputs: list[str], *kinds: str, **attributes: Any) -> list[str]:
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(len(kinds))]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))
        return [self.there(kind, name) for kind, name in zip(kinds, outputs, strict=True)]

    def store(self, name: str, array: np.typing.NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def unary(draft: Draft) -> None:
    draft.make(draft.draw(st.sampled_from(["Relu", "Neg", "Abs", "Identity"])), [draft.pick("float")], "float")


def binary(draft: Draft) -> None:
    op_type = draft.draw(st.sampled_from(["Add", "Sub", "Max", "Min"]))
    draft.make(op_type, [draft.pick("float"), draft.pick("float")], "float")


def weighted(draft: Draft) -> None:
    [product] = draft.make("MatMul", [draft.pick("float"), "square"], "float")
    # An input that is left out, and one that is shared.
    draft.make("Clip", [product, "", "top"], "float")


def constant(draft: Draft) -> None:
    name = f"c{len(draft.nodes)}"
    value = numpy_helper.from_array(np.array([1, -1, 0, 2], np.float32), "value")
    draft.nodes.append(helper.make_node("Constant", [], [name], value=value))
    draft.nodes.append(helper.make_node("Neg", [name], [f"{name}_neg"]))
    draft.make("Add", [draft.pick("float"), f"{name}_neg"], "float")


def split(draft: Draft) -> None:
    draft.make("Split", [draft.pick("float")], "half", "half", axis=1, num_outputs=2)


def join(draft: Draft) -> None:
    if "half" in draft.tensors:
        draft.make("Concat", [draft.pick("half"), draft.pick("half")], "float", axis=1)


def compare(draft: Draft) -> None:
    draft.make("Greater", [draft.pick("float"), draft.pick("float")], "bool")


def choose(draft: Draft) -> None:
    if "bool" in draft.tensors:
        draft.make("Where", [draft.pick("bool"), draft.pick("float"), draft.pick("float")], "float")


def count(draft: Draft) -> None:
    draft.make("Cast", [draft.pick("float")], "int", to=INT64)
    draft.make("Add", [draft.pick("int"), draft.pick("int")], "int")


def write(draft: Draft) -> None:
    draft.make("Identity", [draft.pick("text")], "text")
    draft.make("Cast", [draft.pick("int")], "text", to=STRING)


def list_up(draft: Draft) -> None:
    draft.make("SequenceConstruct", [draft.pick("float"), draft.pick("float")], "list")


def take(draft: Draft) -> None:
    if "list" in draft.tensors:
        draft.make("SequenceAt", [draft.pick("list"), "first"], "float")


def branch(draft: Draft) -> None:
    """An If whose bodies read what is outside, one of them through a body of its own."""
    number = len(draft.nodes)

    def body(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    left, right, deep = draft.pick("float"), draft.pick("float"), draft.pick("float")
    inner = helper.make_node(
        "If",
        ["flag"],
        [f"i{number}"],
        then_branch=body("inner_then", [helper.make_node("Sub", [deep, "bias"], [f"d{number}"])]),
        else_branch=body("inner_else", [helper.make_node("Identity", [left], [f"e{number}"])]),
    )
    outer = [inner, helper.make_node("Add", [f"i{number}", left], [f"l{number}"])]
    draft.make(
        "If",
        ["flag"],
        "float",
        then_branch=body("then", outer),
        else_branch=body("else", [helper.make_node("Neg", [right], [f"r{number}"])]),
    )


STEPS = [unary, binary, weighted, constant, split, join, compare, choose, count, write, list_up, take, branch]


@st.composite
def models(draw: st.DrawFn, max_steps: int = 10) -> onnx.ModelProto:
    """A model of several inputs (one of them a scalar), several outputs, shared weights and skip connections."""
    draft = Draft(draw)
    inputs = [helper.make_tensor_value_info("flag", BOOL, [])]
    for name, kind in {"x": "float", "z": "float", "i": "int", "s": "text"}.items():
        inputs.append(helper.make_tensor_value_info(draft.there(kind, name), KINDS[kind][0], ["N", KINDS[kind][1]]))
    draft.store("square", np.array([[1, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, -1]], np.float32))
    draft.store("bias", np.array([1, 2, 3, 4], np.float32))
    draft.store("top", np.array(50, np.float32))
    draft.store("first", np.array(0, np.int64))
    for step in [unary, *draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=max_steps))]:
        step(draft)
    free = [name for kind in KINDS for name in draft.tensors.get(kind, [])]
    read = {name for node in draft.nodes for name in outer_reads(node)}
    ends = [name for node in draft.nodes for name in node.output if name in free and name not in read]
    chosen = draw(st.lists(st.sampled_from(free), max_size=2, unique=True))
    outputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys([*chosen, *ends, draft.nodes[0].output[0]])]
    for value in outputs:
        kind = next(kind for kind in KINDS if value.name in draft.tensors.get(kind, []))
        value.type.CopyFrom(helper.make_tensor_type_proto(KINDS[kind][0], None))
    if draw(st.booleans()):
        outputs.append(helper.make_tensor_value_info("bias", FLOAT, [4]))
    graph = helper.make_graph(draft.nodes, "random", inputs, outputs, draft.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def batch(rows: int, flag: bool, seed: int) -> dict[str, np.typing.NDArray[np.generic]]:
    """Inputs for any of them."""
    rng = np.random.default_rng(seed)
    return {
        "flag": np.array(flag),
        "x": rng.integers(-9, 10, (rows, 4)).astype(np.float32),
        "z": rng.integers(-9, 10, (rows, 4)).astype(np.float32),
        "i": rng.integers(-9, 10, (rows, 4)),
        "s": np.array([[f"{row}.{column}ü" for column in range(4)] for row in range(rows)], object),
    }
