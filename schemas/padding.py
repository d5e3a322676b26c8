"""Padding of requests that differ in the length of one axis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anabranch.schemas.tensors import Array


@dataclass(frozen=True, slots=True)
class Padding:
    """Axes that are filled up, and cut back.

    Attributes:
        inputs: Name, axis and value.
        outputs: Name and axis.
        max_waste: Largest share of filling in a batch.
    """

    inputs: tuple[tuple[str, int, float], ...]
    outputs: tuple[tuple[str, int], ...]
    max_waste: float = 0.25

    def longest_neighbour(self, length: int) -> int:
        """Return the largest length that may share a batch with this one."""
        end = 1
        while end < length:
            # From `end + 1` to the next end.
            end = max(end + 1, int((end + 1) / (1 - self.max_waste)))
        return end if length else 0


def pad(array: Array, axis: int, length: int, value: float) -> Array:
    """Fill an axis up to a length."""
    missing = length - array.shape[axis]
    if not missing:
        return array
    widths = [(0, missing if at == axis else 0) for at in range(array.ndim)]
    return np.pad(array, widths, constant_values=array.dtype.type(value))


def cut(array: Array, axis: int, length: int) -> Array:
    """Cut an axis back to a length."""
    whole: Any = slice(None)
    return array[(*[whole] * axis, slice(length))]


def pad_inputs(padding: Padding, inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
    """Fill up inputs."""
    axes = {name: (axis, value) for name, axis, value in padding.inputs}
    return {
        name: pad(array, axes[name][0], length, axes[name][1]) if name in axes else array
        for name, array in inputs.items()
    }


def cut_all(axes: Iterable[tuple[str, int]], arrays: Mapping[str, Array], length: int) -> dict[str, Array]:
    """Cut axes back."""
    known = dict(axes)
    return {name: cut(array, known[name], length) if name in known else array for name, array in arrays.items()}
