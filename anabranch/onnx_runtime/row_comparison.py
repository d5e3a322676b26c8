"""Differences between outputs of rows."""

from typing import Any

import numpy as np

from anabranch.schemas.tensors import Array

_FLOOR = 0.01
#: FP16 has three decimal digits.
_OF_HALVES = 10.0


def deviations(alone: Array, together: Array) -> Array:
    """Measure the largest |difference| / max(|value|, RMS of the row, 0.01) of each row.

    Returns:
        FP64 [rows]; 0 or infinity if not floats.
    """
    rows = alone.shape[0]
    if alone.dtype != together.dtype or alone.shape != together.shape:
        return np.full(rows, np.inf)
    one, other = alone.reshape(rows, -1), together.reshape(rows, -1)
    if alone.dtype.kind != "f":
        return np.where((one == other).all(axis=1), 0.0, np.inf)
    wide: Any = np.float64
    one, other = one.astype(wide), other.astype(wide)
    is_equal = (one == other) | (np.isnan(one) & np.isnan(other))
    if one.size == 0 or is_equal.all():
        return np.zeros(rows)
    is_finite = np.isfinite(one)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.where(is_finite, np.square(one), 0.0).sum(axis=1, keepdims=True)
        usual = np.sqrt(squares / np.maximum(is_finite.sum(axis=1, keepdims=True), 1))
        apart = np.abs(one - other) / np.maximum(np.abs(one), np.maximum(usual, _FLOOR))
    apart = np.where(is_equal, 0.0, np.where(is_finite & np.isfinite(other), apart, np.inf))
    largest: Array = apart.max(axis=1)
    return largest / _OF_HALVES if alone.dtype == np.float16 else largest
