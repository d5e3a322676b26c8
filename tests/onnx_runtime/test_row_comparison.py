"""Differences of rows."""

import numpy as np
import pytest

from anabranch.onnx_runtime.row_comparison import deviations
from anabranch.schemas.tensors import Array


def test_deviation_is_relative_to_value_and_row() -> None:
    one = np.array([[1.0, 1.0], [0.0, 100.0], [0.0, 0.0]], np.float32)
    other = np.array([[1.0, 1.1], [0.1, 100.0], [0.001, 0.0]], np.float32)
    np.testing.assert_allclose(deviations(one, other), [0.1, 0.1 / np.sqrt(5000), 0.1], rtol=1e-4)


def test_deviation_of_halves_is_a_tenth() -> None:
    one, other = np.array([[1.0]]), np.array([[1.125]])
    assert deviations(one, other)[0] == pytest.approx(0.125)
    assert deviations(one.astype("f2"), other.astype("f2"))[0] == pytest.approx(0.0125)


def test_deviation_of_nan_and_infinity_needs_the_same() -> None:
    one = np.array([[np.nan, 1], [np.inf, 1], [-np.inf, 1], [1, 1]])
    assert deviations(one, one).tolist() == [0, 0, 0, 0]
    other = np.array([[1, 1], [-np.inf, 1], [0, 1], [np.nan, 1]])
    assert np.isinf(deviations(one, other)).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([[1]]), np.array([[2]])),
        (np.array([[True]]), np.array([[False]])),
        (np.array([["a"]], dtype=object), np.array([["b"]], dtype=object)),
        (np.array([[1]]), np.array([[1.0]])),
        (np.array([[1.0]]), np.array([[1.0, 2.0]])),
    ],
    ids=["integers", "booleans", "texts", "dtypes", "shapes"],
)
def test_deviation_of_other_differences_is_infinite(one: Array, other: Array) -> None:
    assert deviations(one, other).tolist() == [np.inf]
    assert deviations(one, one).tolist() == [0.0]


def test_deviation_of_rows_without_elements_is_zero() -> None:
    assert deviations(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0.0, 0.0]
