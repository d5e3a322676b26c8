"""OutputMapping: outputs of rows as JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anabranch.operators.core.flows.flow_spec import OutputField
from anabranch.operators.core.flows.output_mapping import OutputMapping
from anabranch.schemas.errors import WrongDatatype, WrongShape
from anabranch.schemas.tensors import Array


def format_one(array: Array, *indices: int) -> list[bytes]:
    mapping = OutputMapping([OutputField(("out",), "y", indices)])
    return [row[0] for row in mapping.format({"y": array})]


@pytest.mark.parametrize(
    ("array", "indices", "texts"),
    [
        (np.array([0.1, 1 / 3, 1e30, 2.0], np.float32), (), ["0.1", "0.33333334", "1e+30", "2.0"]),
        (np.array([0.1, 1 / 3]), (), ["0.1", "0.3333333333333333"]),
        (np.array([np.nan, np.inf, -np.inf], np.float32), (), ["null"] * 3),
        (np.array([[0.25, 0.75], [1, 0]], np.float32), (1,), ["0.75", "0.0"]),
        (np.array([[0.25, 0.75], [1, 0]], np.float32), (-2,), ["0.25", "1.0"]),
        (np.array([[0.25, 0.75]], np.float32), (), ["[0.25,0.75]"]),
        (np.arange(8, dtype=np.int64).reshape(2, 2, 2), (1,), ["[2,3]", "[6,7]"]),
        (np.arange(8, dtype=np.uint8).reshape(2, 2, 2), (1, 0), ["2", "6"]),
        (np.array([2**63 - 1, -(2**63)]), (), ["9223372036854775807", "-9223372036854775808"]),
        (np.array([True, False]), (), ["true", "false"]),
        (np.array([[True], [False]]), (), ["[true]", "[false]"]),
        (np.array([b"ok", 'a"\u00e9'.encode()], object), (), ['"ok"', '"a\\"\u00e9"']),
        (np.array([[b"a", b"b"]], object), (), ['["a","b"]']),
        (np.array([0.5, 1 / 3], np.float16), (), ["0.5", "0.33325195"]),
        (np.zeros((0, 2), np.float32), (0,), []),
    ],
)
def test_output_of_each_kind_is_formatted(array: Array, indices: tuple[int, ...], texts: list[str]) -> None:
    assert [fragment.decode() for fragment in format_one(array, *indices)] == texts


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(2))))
def test_output_any_float_is_read_as_the_same(array: Array) -> None:
    for row, fragment in zip(array[:, 1].tolist(), format_one(array, 1), strict=True):
        read = json.loads(fragment)
        assert (read is None) == (not math.isfinite(row))
        assert read is None or np.float32(read) == np.float32(row)


def test_output_index_outside_the_row_is_refused() -> None:
    with pytest.raises(WrongShape, match=r"output 'y' has rows of shape \[2\] without index 2"):
        format_one(np.zeros((3, 2), np.float32), 2)


def test_output_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WrongDatatype, match="not UTF-8"):
        format_one(np.array([b"\xff"], object))


def test_output_defaults_are_formatted_in_order() -> None:
    fields = [OutputField(("a",), "y", (), 0.5), OutputField(("b",), "y", (), None), OutputField(("c",), "z", (), "x")]
    mapping = OutputMapping(fields)
    assert mapping.defaults() == (b"0.5", b"null", b'"x"')
    assert mapping.tensors == ("y", "z")
