"""Cuts of a graph, and what crosses them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from anabranch.partition.errors import NoSuchCut
from anabranch.partition.graph.model_graph import Graph, load_graph
from tests.partition.texts import BRANCHES, graph_of


def crossings(graph: Graph) -> list[tuple[str, ...]]:
    return [graph.crossing(downset) for downset in graph.prefixes()]


def test_graph_two_branches_have_four_cuts(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    assert [node.op_type for node in graph.nodes] == ["Relu", "Neg", "Abs", "Add"]
    assert [nodes for nodes in range(1, graph.everything) if graph.obstacle(nodes) is None] == [0b1, 0b11, 0b101, 0b111]
    assert list(graph.prefixes()) == [0b1, 0b11, 0b111]


def test_crossing_includes_tensors_that_pass_a_stage(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    assert graph.crossing(0) == ("x",)
    assert crossings(graph) == [("a",), ("a", "b"), ("b", "c")]
    assert graph.crossing(graph.everything) == ("y",)
    [first, second, third] = graph.parts([0b1, 0b11])
    assert (graph.stage_inputs(second), graph.stage_outputs(second)) == (("a",), ("b",))
    assert (graph.stage_inputs(third), graph.stage_outputs(third)) == (("a", "b"), ("y",))
    assert (graph.stage_inputs(first), graph.stage_outputs(first)) == (("x",), ("a",))


def test_crossing_includes_late_inputs_and_early_outputs(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (float[N] x, float[N] late, float[N] never) => (float[N] early, float[N] y, float[N] x) {
            early = Relu(x)
            b = Neg(early)
            y = Add(b, late)
        }""",
    )
    assert graph.inputs == ("x", "late", "never")
    assert crossings(graph) == [("x", "late", "early"), ("x", "late", "early", "b")]
    assert graph.stage_outputs(0b1) == ("early",)


def test_graph_constants_and_their_results_are_not_nodes(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}, float unused = {0}> {
            two = Constant <value = float {2}> ()
            double = Mul(w, two)
            a = Add(x, double)
            y = Mul(a, w)
        }""",
    )
    assert [node.op_type for node in graph.nodes] == ["Add", "Mul"]
    assert [constant.makes for constant in graph.constants] == [("w",), ("unused",), ("two",), ("double",)]
    assert crossings(graph) == [("a",)]
    assert [graph.parameter_bytes(part) for part in (0b1, 0b10, 0b11)] == [20, 16, 20]


def test_graph_random_tensor_is_a_node(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (float[4] x) => (float[4] y) {
            noise = RandomNormal <shape = [4]> ()
            a = Add(x, noise)
            y = Mul(a, noise)
        }""",
    )
    assert [node.op_type for node in graph.nodes] == ["RandomNormal", "Add", "Mul"]
    assert graph.crossing(0b11) == ("noise", "a")


CAPTURING = """
g (bool b, float[N] x) => (float[N] y) <float[1] w = {1}> {
    a = Relu(x)
    deep = Neg(x)
    c = If (b) <
        then_branch = t () => (float[N] r) { s = If (b) <
            then_branch = tt () => (float[N] q) { q = Add(deep, w) },
            else_branch = te () => (float[N] p) { p = Identity(w) }
        > r = Mul(s, s) },
        else_branch = e () => (float[N] u) { u = Sub(a, w) }
    >
    y = Neg(c)
}
"""


def test_graph_node_reads_outer_tensors_of_bodies(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, CAPTURING)
    branching = graph.nodes[2]
    assert branching.reads == ("b", "deep", "a")
    assert graph.crossing(0b11) == ("b", "a", "deep")
    assert graph.crossing(0b1) == ("b", "x", "a")
    assert not graph.is_downset(0b101)
    assert [graph.parameter_bytes(1 << index) for index in range(4)] == [0, 0, 4, 0]


def test_graph_unused_node_is_dropped(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "g (float[N] x) => (float[N] y) { dead = Abs(x) y = Relu(x) }")
    assert [node.op_type for node in graph.nodes] == ["Relu"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N] x) => (float[N] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence <axis = 0> (s) }",
         "'s' cannot travel: its type is sequence, expected a tensor"),
        ("g (float[N] x) => (float[N] y) { s = Optional(x) y = OptionalGetElement(s) }",
         "'s' cannot travel: its type is optional, expected a tensor"),
        ("g (float[N] x) => (float[N] y) { s = Cast <to = 16> (x) y = Cast <to = 1> (s) }",
         "'s' cannot travel: it is a tensor of BFLOAT16, which the protocol does not have"),
    ],
)  # fmt: skip
def test_obstacle_uncarried_tensor_is_explained(tmp_path: Path, text: str, reason: str) -> None:
    assert graph_of(tmp_path, text).obstacle(0b1) == reason


@pytest.mark.parametrize("downset", [0, 0b10, 0b110, 0b1111])
def test_obstacle_illegal_cut_is_explained(tmp_path: Path, downset: int) -> None:
    assert "not a cut" in (graph_of(tmp_path, BRANCHES).obstacle(downset) or "")


@pytest.mark.parametrize("cuts", [[0b1, 0b1], [0b11, 0b1], [0], [0b1111], [0b10], [0b11, 0b101]])
def test_parts_cuts_that_do_not_grow_are_refused(tmp_path: Path, cuts: list[int]) -> None:
    with pytest.raises(NoSuchCut, match="stage"):
        graph_of(tmp_path, BRANCHES).parts(cuts)


def test_graph_unordered_nodes_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> {BRANCHES}')
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, path)
    graph = load_graph(path)
    assert [node.op_type for node in graph.nodes][0::3] == ["Relu", "Add"]
    assert all(graph.is_downset(downset) for downset in graph.prefixes())


@pytest.mark.slow
def test_graph_two_thousand_nodes_have_their_cuts(tmp_path: Path) -> None:
    lines = ["a0 = Relu(x)"]
    lines += [f"a{i} = Add(a{i - 1}, a{max(i - 3, 0)})" for i in range(1, 1999)]
    graph = graph_of(tmp_path, f"g (float[N, 8] x) => (float[N, 8] y) {{ {' '.join(lines)} y = Neg(a1998) }}")
    assert len(graph.nodes) == 2000
    assert sum(graph.obstacle(downset) is None for downset in graph.prefixes()) == 1999
    assert graph.crossing((1 << 1000) - 1) == ("a997", "a998", "a999")


def test_graph_input_with_initializer_is_not_an_input(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[N] x, float[1] w) => (float[N] y) { y = Add(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    onnx.save(model, path)
    assert load_graph(path).inputs == ("x",)
