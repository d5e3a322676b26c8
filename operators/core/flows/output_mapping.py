"""Formats the outputs of a model as JSON, one fragment for each row and field."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from anabranch.operators.core.flows.field_path import format_path
from anabranch.operators.core.flows.flow_spec import OutputField
from anabranch.schemas.errors import WrongDatatype, WrongShape
from anabranch.schemas.tensors import Array

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class OutputMapping:
    """Formats outputs; NaN and infinity become null, FP32 the shortest number that is read as the same FP32."""

    def __init__(self, fields: Sequence[OutputField]) -> None:
        self._fields = fields
        self.tensors = tuple(dict.fromkeys(field.tensor for field in fields))

    def format(self, outputs: Mapping[str, Array]) -> list[tuple[bytes, ...]]:
        """Return the fragments of each row, in order of the fields.

        Args:
            outputs: Rows along axis 0.

        Raises:
            WrongShape: An index is outside the row.
            WrongDatatype: A text is not UTF-8.
        """
        columns = [_format_column(outputs[field.tensor], field) for field in self._fields]
        return list(zip(*columns, strict=True))

    def defaults(self) -> tuple[bytes, ...]:
        """Return the fragments of an event without prediction."""
        return tuple(orjson.dumps(field.default) for field in self._fields)


def column_of(array: Array, field: OutputField) -> Array:
    """Return the part of an output that a field takes, with rows along axis 0; raise WrongShape."""
    for index in field.indices:
        if array.ndim < 2 or not -array.shape[1] <= index < array.shape[1]:
            raise WrongShape(
                f"output {field.tensor!r} has rows of shape {list(array.shape[1:])} without index {index}, which "
                f"{format_path(field.path)!r} needs: correct the flow's outputs"
            )
        array = array[:, index]
    return array


def text_of(value: bytes, field: OutputField, holder: str) -> str:
    """Decode a text for a format that holds UTF-8 alone, or raise WrongDatatype."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise WrongDatatype(
            f"output {field.tensor!r} has a text that is not UTF-8, which {holder} cannot hold: leave "
            f"{format_path(field.path)!r} out of the flow's outputs"
        ) from None


def _format_column(array: Array, field: OutputField) -> list[bytes]:
    array = column_of(array, field)
    if array.dtype == object:
        return (
            [_dump(value, field) for value in array.tolist()]
            if array.ndim == 1
            else [_dump(row, field) for row in array.tolist()]
        )
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype == bool:
        return [orjson.dumps(row) for row in contiguous.tolist()]
    if contiguous.ndim == 1:
        return orjson.dumps(contiguous, option=_NUMPY)[1:-1].split(b",") if len(contiguous) else []
    return [orjson.dumps(row, option=_NUMPY) for row in contiguous]


def _dump(value: Any, field: OutputField) -> bytes:
    try:
        return orjson.dumps(_texts(value))
    except UnicodeDecodeError:
        raise WrongDatatype(
            f"output {field.tensor!r} has a text that is not UTF-8, which JSON cannot hold: leave "
            f"{format_path(field.path)!r} out of the flow's outputs"
        ) from None


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value
