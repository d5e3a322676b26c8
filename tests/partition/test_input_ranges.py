"""Ranges of integer inputs."""

import onnx
import onnx.parser
import pytest

from anabranch.partition.graph.input_ranges import InputRange, input_ranges


def ranges(graph: str) -> dict[str, InputRange]:
    domains = '"" : 18, "com.microsoft" : 1'
    return input_ranges(onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{domains}]>\nm {graph}"))


@pytest.mark.parametrize(
    ("graph", "end"),
    [
        ("(int64[N] i) => (float[N,2] y) <float[3,2] t = {1,2,3,4,5,6}> { y = Gather (t, i) }", 3),
        ("(int64[N] i) => (float[3,N] y) <float[3,2] t = {1,2,3,4,5,6}> { y = Gather <axis = 1> (t, i) }", 2),
        (
            "(int32[N] i) => (float[N,2] y) <float[3,2] t = {1,2,3,4,5,6}> { j = Cast <to = 7> (i) y = Gather (t, j) }",
            3,
        ),
        ("(int64[N] i) => (float[N,9] y) <int64 d = {9}, float[2] v = {0,1}> { y = OneHot (i, d, v) }", 9),
        (
            "(int64[N] i) => (float[N,2] y) <uint8[3,2] q = {1,2,3,4,5,6}, float s = {1}> "
            "{ t = DequantizeLinear (q, s) y = Gather (t, i) }",
            3,
        ),
        ("(int64[N] i) => (float[N] y) { t = Constant <value = float[4] {1,2,3,4}> () y = Gather (t, i) }", 4),
        (
            "(int64[N] i) => (float[N] y) <float[5] a = {1,2,3,4,5}, float[4] b = {1,2,3,4}> "
            "{ p = Gather (a, i) q = Gather (b, i) y = Add (p, q) }",
            4,
        ),
    ],
    ids=["rows", "columns", "identity", "one hot", "quantised", "constant", "two tables"],
)
def test_input_range_of_an_index_is_its_table(graph: str, end: int) -> None:
    assert ranges(graph) == {"i": InputRange(end)}


def test_input_range_of_lengths_is_marked() -> None:
    found = ranges(
        "(float[N,T] x, int64[N] n) => (float[N,T] y) { y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n) }"
    )
    assert found == {"n": InputRange(is_length=True)}


def test_input_range_of_a_number_is_not_known() -> None:
    assert ranges("(int64[N] i) => (int64[N] y) { y = Abs (i) }") == {}
