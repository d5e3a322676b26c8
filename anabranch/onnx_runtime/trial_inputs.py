"""Rows on which a model is tried: usual ones and outliers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, Array

Row: TypeAlias = Mapping[str, Array]
Axes: TypeAlias = tuple[int | str | None, ...]

#: Tried for open axes, and for integers of unknown range.
_AXIS_SIZES = (64, 32, 16, 8, 4, 2, 1, 256)
_ENDS = (256, 1000, 10, 2, 1)
_WORDS = ("a", "river", "Ünïcode", "two words", "7", "x" * 40)
#: Magnitudes of floats.
_USUAL = (1.0, 1.0, 1.0, 0.5, 2.0, 1.0)
_OUTLIERS = (0.0, 1e3, 1e-3, 1e4, -30.0, 10.0)
_SPIKE = 1e4
#: FP16 ends at 65,504.
_LARGEST = 6e4


@dataclass(frozen=True, slots=True)
class TrialInput:
    """An input of a model.

    Attributes:
        shape: Axes as size, name or None, the rows first.
        end: Upper end of integers; None if unknown.
        kind: A `length` counts entries of an open axis, a `mask` has ones and then zeros.
    """

    name: str
    datatype: str
    shape: Axes
    low: int = 0
    end: int | None = None
    kind: Literal["values", "length", "mask"] = "values"


@dataclass(frozen=True, slots=True)
class RowPool:
    """Rows of one shape, each with an axis 0 of size 1."""

    usual: Sequence[Row]
    outliers: Sequence[Row]
    origin: str


def generated_pools(inputs: Sequence[TrialInput], *, seed: int = 0) -> Iterator[RowPool]:
    """Yield pools to try, the most demanding first."""
    is_open = any(not isinstance(axis, int) for spec in inputs for axis in spec.shape[1:])
    is_free = any(
        spec.datatype not in FLOATS | {BYTES, "BOOL"} and spec.end is None and spec.kind == "values" for spec in inputs
    )
    for size in _AXIS_SIZES if is_open else (1,):
        for end in _ENDS if is_free else (1,):
            rng = np.random.default_rng(seed)
            usual = [{spec.name: _usual(rng, spec, size, end, number) for spec in inputs} for number in range(6)]
            outliers = [{spec.name: _outlier(rng, spec, size, end, number) for spec in inputs} for number in range(7)]
            yield RowPool(usual, outliers, "generated inputs")


def sampled_pool(sample: Mapping[str, Array], origin: str, *, seed: int = 0) -> RowPool:
    """Return the rows of a sample, and outliers made of them."""
    rng = np.random.default_rng(seed)
    count = min(array.shape[0] for array in sample.values())
    usual: list[Row] = [{name: array[at : at + 1] for name, array in sample.items()} for at in range(min(count, 8))]
    while len(usual) < 3:
        usual.append({name: rng.permuted(array, axis=-1) for name, array in usual[0].items()})
    outliers = [{name: _scaled(array, scale) for name, array in usual[0].items()} for scale in (0.0, 1e3, -30.0, 1e-3)]
    return RowPool(usual, outliers, origin)


def _scaled(array: Array, scale: float) -> Array:
    if array.dtype.kind == "f":
        return np.asarray(np.clip(array.astype(np.float64) * scale, -_LARGEST, _LARGEST), array.dtype)
    # Other values may be indices: all take one of them.
    return np.full_like(array, array.flat[0]) if array.size else array


def _usual(rng: np.random.Generator, spec: TrialInput, size: int, end: int, number: int) -> Array:
    shape = _shape(spec, size)
    if spec.kind == "mask":
        return _mask(spec, shape, 1 + int(rng.integers(0, max(1, shape[-1]))))
    if spec.datatype in FLOATS:
        values = rng.uniform(0, 1, shape) if number % 3 == 2 else rng.standard_normal(shape)
        return np.asarray(values * _USUAL[number], NUMPY_DTYPES[spec.datatype])
    if spec.datatype == BYTES:
        return _text(rng.choice(_WORDS, shape))
    low, high = _range(spec, size, end)
    return np.asarray(rng.integers(low, high, shape), NUMPY_DTYPES[spec.datatype])


def _outlier(rng: np.random.Generator, spec: TrialInput, size: int, end: int, number: int) -> Array:
    shape = _shape(spec, size)
    if spec.kind == "mask":
        return _mask(spec, shape, 1 if number == 0 else shape[-1])
    if spec.datatype in FLOATS:
        if number == len(_OUTLIERS):
            values = rng.standard_normal(shape)
            values.flat[:1] = _SPIKE
        else:
            values = rng.standard_normal(shape) * _OUTLIERS[number]
        # The largest number of FP16 is 65,504.
        return np.asarray(
            np.clip(values, -_LARGEST, _LARGEST) if spec.datatype == "FP16" else values, NUMPY_DTYPES[spec.datatype]
        )
    if spec.datatype == BYTES:
        return _text(np.full(shape, ("", "x" * 200, "0")[number % 3]))
    low, high = _range(spec, size, end)
    value = (low, high - 1)[number % 2] if number < 4 else rng.integers(low, high, shape)
    return np.asarray(np.broadcast_to(value, shape), NUMPY_DTYPES[spec.datatype]).copy()


def _shape(spec: TrialInput, size: int) -> tuple[int, ...]:
    return (1, *(axis if isinstance(axis, int) else size for axis in spec.shape[1:]))


def _range(spec: TrialInput, size: int, end: int) -> tuple[int, int]:
    if spec.datatype == "BOOL":
        return 0, 2
    if spec.kind == "length":
        return 1, size + 1
    high = spec.end if spec.end is not None else min(end, int(np.iinfo(spec.datatype.lower()).max))
    return min(spec.low, high - 1), high


def _mask(spec: TrialInput, shape: tuple[int, ...], ones: int) -> Array:
    mask = np.zeros(shape, NUMPY_DTYPES[spec.datatype])
    mask[..., :ones] = 1
    return mask


def _text(words: Array) -> Array:
    # Elements travel as bytes.
    text = np.empty(words.shape, dtype=object)
    text.ravel()[:] = [str(word).encode() for word in words.ravel()]
    return text
