"""Inputs are cast to a model's types where no value is lost, and refused by name where one is."""

from typing import Any

import numpy as np
import pytest

from anabranch.casting import cast
from anabranch.schemas.errors import WrongDatatype
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.tensors import NUMPY_DTYPES

KEPT: list[tuple[Any, str]] = [
    ([[1, 2], [3, 4]], "FP32"),
    ([0.1, 1e-50], "FP32"),
    (np.array([np.nan, np.inf, -0.0]), "FP16"),
    (3, "INT8"),
    (2.0, "INT64"),
    ([True, False], "FP32"),
    ([0, 1], "BOOL"),
    (np.array([2**53], np.int64), "FP64"),
    (np.array([255], np.int64), "UINT8"),
]
LOST: list[tuple[Any, str]] = [
    (np.array([1e39]), "FP32"),
    ([70_000.0], "FP16"),
    ([1.5], "INT32"),
    ([300], "INT8"),
    ([-1], "UINT64"),
    ([2], "BOOL"),
    (np.array([2**53 + 1], np.int64), "FP64"),
    (np.array([2**24 + 1], np.int64), "FP32"),
    ([np.nan], "INT32"),
    ([2.0**63], "INT64"),
    (np.array([2**63], np.uint64), "INT64"),
]


@pytest.mark.parametrize(("value", "datatype"), KEPT)
def test_cast_value_of_the_type_is_converted(value: Any, datatype: str) -> None:
    made = cast({"x": value}, [TensorSpec("x", datatype, (None,))])["x"]
    assert isinstance(made, np.ndarray)
    assert made.dtype == np.dtype(NUMPY_DTYPES[datatype])
    expected = np.asarray(value).astype(made.dtype)
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(("value", "datatype"), LOST)
def test_cast_value_that_would_be_lost_is_refused(value: Any, datatype: str) -> None:
    with pytest.raises(WrongDatatype, match=f"input 'x'.*{datatype}"):
        cast({"": value}, [TensorSpec("x", datatype, (None,))])


def test_cast_other_values_are_left_alone() -> None:
    specs = [TensorSpec("x", "FP32", (None,)), TensorSpec("t", "BYTES", (None,))]
    x, words = np.ones(1, np.float32), ["a"]
    made = cast({"x": x, "t": words, "unknown": 1}, specs)
    assert made["x"] is x
    assert made["t"] is words
    assert made["unknown"] == 1
