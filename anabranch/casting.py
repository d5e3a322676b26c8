"""Casts inputs to the types of a model, where no value is lost.

Floats may be rounded to a narrower type, but not become infinite; integers and booleans keep their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from anabranch.schemas.errors import WrongDatatype, WrongShape
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, Array


class FrameLike(Protocol):
    """The part of a pandas DataFrame that is used."""

    columns: Any
    iloc: Any

    def __len__(self) -> int:
        """Return the number of rows."""


def cast(inputs: Mapping[str, npt.ArrayLike], specs: Sequence[TensorSpec]) -> dict[str, npt.ArrayLike]:
    """Cast arrays, lists and numbers to a model's types; inputs that it does not know are left alone.

    Args:
        inputs: By name; the name of an only input may be empty.

    Raises:
        WrongDatatype: A value would be lost.
    """
    known = {spec.name: spec for spec in specs} | ({"": specs[0]} if len(specs) == 1 else {})
    return {name: _cast(name, value, known[name]) if name in known else value for name, value in inputs.items()}


def _cast(name: str, value: npt.ArrayLike, spec: TensorSpec) -> npt.ArrayLike:
    array: np.ndarray[Any, Any] = np.asarray(value)
    if spec.datatype == BYTES or array.dtype.kind not in "biuf":
        return value
    wanted: np.dtype[Any] = np.dtype(NUMPY_DTYPES[spec.datatype])
    if array.dtype == wanted:
        return value
    with np.errstate(all="ignore"):
        made: np.ndarray[Any, Any] = array.astype(wanted)
        is_rounding = spec.datatype in FLOATS and array.dtype.kind == "f"
        kept = np.isfinite(made) == np.isfinite(array) if is_rounding else made.astype(array.dtype) == array
        if not is_rounding and array.dtype.kind == "f" and wanted.kind in "iu":
            kept &= (array >= np.iinfo(wanted).min) & (array <= np.iinfo(wanted).max)
        if not is_rounding and array.dtype.kind in "iu" and wanted.kind in "iu":
            kept &= (made < 0) == (array < 0)
    if not kept.all():
        lost = array[~kept].ravel()[0]
        raise WrongDatatype(
            f"input {name or spec.name!r}: {lost!r} of {array.dtype} is not a value of {spec.datatype}: "
            "send values that the model's type has"
        )
    return made


def rows_of(frame: FrameLike, specs: Sequence[TensorSpec], first: int, last: int) -> dict[str, Array]:
    """Return rows of a DataFrame as inputs: a column for each input, or all columns as the axis of an only one.

    Raises:
        WrongShape: The columns do not fit the model.
    """
    part, columns = frame.iloc[first:last], [str(name) for name in frame.columns]
    if all(spec.name in columns for spec in specs):
        return {spec.name: _column(part[spec.name].to_numpy(), spec) for spec in specs}
    if len(specs) == 1 and len(specs[0].shape) == 2 and specs[0].shape[1] in (None, len(columns)):
        return {specs[0].name: part.to_numpy()}
    wanted = ", ".join(spec.name for spec in specs)
    raise WrongShape(f"the DataFrame has the columns {', '.join(columns)}, expected {wanted}: rename or select them")


def _column(values: Array, spec: TensorSpec) -> Array:
    if values.dtype == object and len(values) and not isinstance(values[0], str | bytes):
        values = np.stack([np.asarray(value) for value in values])
    return values.reshape(-1, 1) if values.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] in (None, 1) else values
