"""Lengths that may share a batch, and axes that are filled up and cut back."""

import numpy as np
import pytest

from anabranch.schemas.padding import Padding, cut, cut_all, pad, pad_inputs


@pytest.mark.slow
@pytest.mark.parametrize("max_waste", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_padding_of_neighbours_keeps_the_bound(max_waste: float) -> None:
    padding = Padding((("x", 1, 0.0),), (), max_waste)
    ends = [padding.longest_neighbour(length) for length in range(1, 2000)]
    assert ends == sorted(ends)
    for length, end in enumerate(ends, 1):
        assert length <= end
        assert padding.longest_neighbour(end) == end
        assert (end - length) / end <= max_waste + 1e-9
    assert padding.longest_neighbour(0) == 0
    assert len(set(ends)) < 1999 or max_waste == 0


def test_padding_fills_one_axis_and_cuts_it() -> None:
    x = np.arange(6, dtype=np.int64).reshape(2, 3)
    filled = pad(x, 1, 5, 7)
    assert filled.tolist() == [[0, 1, 2, 7, 7], [3, 4, 5, 7, 7]]
    assert filled.dtype == x.dtype
    assert pad(x, 1, 3, 7) is x
    assert cut(filled, 1, 3).tolist() == x.tolist()


def test_padding_leaves_other_tensors_alone() -> None:
    padding = Padding((("x", 1, -1.0),), (("y", 1),))
    given = {"x": np.zeros((1, 1), "f4"), "k": np.zeros((1, 1), "f4")}
    assert {name: array.tolist() for name, array in pad_inputs(padding, given, 2).items()} == {
        "x": [[0, -1]],
        "k": [[0]],
    }
    made = {"y": np.zeros((1, 3)), "z": np.zeros((1, 3))}
    assert {name: array.shape for name, array in cut_all(padding.outputs, made, 2).items()} == {
        "y": (1, 2),
        "z": (1, 3),
    }
