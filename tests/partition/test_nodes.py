"""Graph nodes: violations of ONNX's rules are named."""

from pathlib import Path

import onnx
import pytest

from anabranch.partition.errors import InvalidModel
from anabranch.partition.graph.nodes import outer_reads, read_nodes
from tests.partition.texts import graph_of, model_of


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = Add(x, lost)", "'Add_0' reads 'lost', which no node makes: export the model again"),
        ("a = Relu(x)", "the model outputs 'y', which no node makes: export the model again"),
        ("y = Relu(x) y = Neg(x)", "tensor 'y' is made twice: export the model again"),
        ("x = Relu(w) y = Neg(x)", "tensor 'x' is made twice: export the model again"),
        ("w = Relu(x) y = Neg(x)", "tensor 'w' is made twice: export the model again"),
        ("a = Add(x, b) b = Neg(a) y = Relu(b)", "the nodes form a cycle, 'Add_0' among them: export the model again"),
    ],
)
def test_read_nodes_invalid_model_is_refused(tmp_path: Path, nodes: str, reason: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        graph_of(tmp_path, f"g (float[N] x) => (float[N] y) <float[1] w = {{1}}> {{ {nodes} }}")
    assert str(refused.value) == reason


def test_outer_reads_omitted_inputs_are_skipped() -> None:
    assert outer_reads(onnx.helper.make_node("Resize", ["x", "", "scales", "x"], ["y"])) == ["x", "scales"]


def test_read_nodes_omitted_outputs_are_skipped() -> None:
    model = model_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    model.graph.node[0].output.append("")
    model.graph.node.append(onnx.helper.make_node("Dropout", ["x"], ["z", ""]))
    [node], _, _ = read_nodes(model)
    assert node.makes == ("y",)


@pytest.mark.parametrize(
    ("body", "constants"), [("r = Relu(c)", 2), ("r = RandomNormalLike(c)", 1), ("d = Neg(c) r = Bernoulli(d)", 1)]
)
def test_read_nodes_random_function_is_not_constant(body: str, constants: int) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[N] x) => (float[N] y) {{ c = Constant <value = float {{2}}> () f = own.twice(c) y = Add(x, f) }}
        <domain: "own", opset_import: ["" : 17]> twice (c) => (r) {{ {body} }}"""
    )
    _, found, _ = read_nodes(model)
    assert len(found) == constants


def test_read_nodes_unknown_operator_is_not_constant() -> None:
    model = model_of("g (float[N] x) => (float[N] y) { f = foreign.Read() y = Add(x, f) }")
    nodes, constants, _ = read_nodes(model)
    assert (len(nodes), len(constants)) == (2, 0)
