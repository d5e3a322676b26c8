"""Padding of one axis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from anabranch.schemas.tensors import Array


@dataclass(frozen=True, slots=True)
class Padding:
    """Axes to fill and to cut back.

    Attributes:
        inputs: Name, axis and value.
        outputs: Name and axis.
        max_waste: Largest share of filling.
    """

    inputs: tuple[tuple[str, int, float], ...]
    outputs: tuple[tuple[str, int], ...]
    max_waste: float = 0.1

    def longest_neighbour(self, length: int) -> int:
        """Return the longest length of the same group."""
        end = 1
        while end < length:
            end = max(end + 1, int((end + 1) / (1 - self.max_waste)))
        return end if length else 0


def pad(array: Array, axis: int, length: int, value: float) -> Array:
    """Fill an axis."""
    missing = length - array.shape[axis]
    if not missing:
        return array
    widths = [(0, missing if at == axis else 0) for at in range(array.ndim)]
    return np.pad(array, widths, constant_values=array.dtype.type(value))


def cut(array: Array, axis: int, length: int) -> Array:
    """Cut an axis."""
    index = (*[slice(None)] * axis, slice(length))
    found: Array = array[index]
    return found


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
