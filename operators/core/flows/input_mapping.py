"""Makes the tensors of a model from the values of fields."""

import binascii
import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from math import prod
from typing import Any, TypeAlias

import msgspec
import numpy as np

from anabranch.operators.core.flows.event_reader import MISSING, describe
from anabranch.operators.core.flows.field_path import FieldPath, format_path
from anabranch.operators.core.flows.flow_spec import UNITS_S, FieldSpec, InputSpec
from anabranch.schemas.errors import InvalidField, MissingField
from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, fits, raw_from_elements, show_axes

#: Raw bytes and shape without the batch axis.
Mapped: TypeAlias = tuple[bytes, tuple[int, ...]]

#: Formats of `struct` by datatype.
STRUCT_FORMATS = dict(zip(NUMPY_DTYPES, "?BHIQbhiqefd", strict=True))


class InputMapping:
    """Makes one input from the values of its fields."""

    def __init__(self, spec: InputSpec) -> None:
        self.paths: tuple[FieldPath, ...] = tuple(field.path for field in spec.fields)
        self._spec = spec
        self._convert = _converter(spec.datatype)
        count = len(spec.fields)
        self._shape = tuple(1 if axis is None else axis for axis in spec.shape)
        if not spec.is_whole and prod(self._shape) != count:
            # The only free axis has the fields.
            self._shape = tuple(count if axis is None else axis for axis in spec.shape)
        self._pack = struct.Struct(f"<{count}{STRUCT_FORMATS.get(spec.datatype, 'x')}").pack
        is_number = spec.datatype not in (BYTES, "BOOL")
        #: True if the packer checks the values.
        self._is_direct = is_number and not spec.is_whole and all(field.kind == "plain" for field in spec.fields)

    def map_good(self, found: Sequence[Sequence[Any]]) -> list[list[Mapped]] | None:
        """Map events; None if any needs a closer look."""
        if not self._is_direct:
            return None
        pack, shape = self._pack, self._shape
        try:
            return [[(pack(*values), shape)] for values in found]
        except (struct.error, OverflowError):
            return None

    def map(self, values: Sequence[Any]) -> Mapped:
        """Return the raw tensor of one event and its shape without the batch axis.

        Raises:
            MissingField: A field without default is missing or null.
            InvalidField: A field has another type, size or range.
        """
        if self._is_direct:
            try:
                return self._pack(*values), self._shape
            except (struct.error, OverflowError):
                pass  # A default, or an error to name.
        if self._spec.is_whole:
            return self._map_whole(self._spec.fields[0], values[0])
        convert = self._convert
        elements = [
            _default_of(field, value) if value is None or value is MISSING else convert(value, field)
            for field, value in zip(self._spec.fields, values, strict=True)
        ]
        if self._spec.datatype == BYTES:
            return raw_from_elements(elements), self._shape
        try:
            return self._pack(*elements), self._shape
        except (struct.error, OverflowError):
            raise self._out_of_range(elements) from None

    def _out_of_range(self, elements: Sequence[Any]) -> InvalidField:
        pack = struct.Struct(f"<{STRUCT_FORMATS[self._spec.datatype]}").pack
        for field, element in zip(self._spec.fields, elements, strict=True):
            try:
                pack(element)
            except (struct.error, OverflowError):
                return _invalid(field, element, f"a number in the range of {self._spec.datatype}")
        raise AssertionError(elements)

    def _map_whole(self, field: FieldSpec, value: Any) -> Mapped:
        spec = self._spec
        nested: tuple[int, ...] = ()
        if value is None or value is MISSING:
            shape = _fill(spec.shape, prod(axis or 1 for axis in spec.shape))
            elements = [_default_of(field, value)] * prod(shape or ())
        elif field.kind == "base64" and spec.datatype != BYTES:
            return self._map_bytes(field, value)
        elif isinstance(value, list):
            flat, nested = _flatten(value, field)
            shape = nested if fits(nested, spec.shape) else None
            convert = self._convert
            elements = [_default_of(field, each) if each is None else convert(each, field) for each in flat]
        else:
            shape = _fill(spec.shape, 1)
            elements = [self._convert(value, field)]
        if shape is None:
            raise InvalidField(
                f"field {format_path(field.path)!r} has shape {list(nested)}, expected {show_axes(spec.shape)}: "
                "nest the list as the model's input"
            )
        if spec.datatype == BYTES:
            return raw_from_elements(elements), shape
        try:
            with np.errstate(over="raise"):
                return np.array(elements, NUMPY_DTYPES[spec.datatype]).tobytes(), shape
        except (OverflowError, FloatingPointError):
            raise InvalidField(
                f"field {format_path(field.path)!r} has an element out of the range of {spec.datatype}: "
                "send values in range"
            ) from None

    def _map_bytes(self, field: FieldSpec, value: Any) -> Mapped:
        spec = self._spec
        raw = _from_base64(value, field)
        items, rest = divmod(len(raw), NUMPY_DTYPES[spec.datatype].itemsize)
        shape = _fill(spec.shape, items)
        if rest or shape is None:
            raise InvalidField(
                f"field {format_path(field.path)!r} has {len(raw)} bytes, expected {spec.datatype} "
                f"{show_axes(spec.shape)}: send all elements, little-endian"
            )
        return raw, shape


def _default_of(field: FieldSpec, value: Any) -> Any:
    if field.default is MISSING:
        raise MissingField(
            f"field {format_path(field.path)!r} is {describe(value)}: send it, or give the field a default in the flow"
        )
    return field.default


def _converter(datatype: str) -> Callable[[Any, FieldSpec], Any]:
    if datatype == BYTES:
        return _to_bytes
    if datatype == "BOOL":
        return _to_bool
    return _to_float if datatype in FLOATS else _to_int


def _to_bytes(value: Any, field: FieldSpec) -> bytes:
    if field.kind == "base64":
        return _from_base64(value, field)
    if isinstance(value, str | bytes):
        return value.encode() if isinstance(value, str) else value
    raise _invalid(field, value, "a text")


def _to_bool(value: Any, field: FieldSpec) -> bool:
    if isinstance(value, bool):
        return value
    raise _invalid(field, value, "true or false")


def _to_float(value: Any, field: FieldSpec) -> float:
    value = _number_of(value, field)
    if isinstance(value, int | float):
        return value
    raise _invalid(field, value, "a number")


def _to_int(value: Any, field: FieldSpec) -> int:
    value = _number_of(value, field)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    raise _invalid(field, value, "an integer")


def _number_of(value: Any, field: FieldSpec) -> Any:
    if field.kind == "plain":
        return value
    if field.kind == "enum":
        if isinstance(value, str) and value in field.values:
            return field.values.index(value)
        raise _invalid(field, value, f"one of {', '.join(field.values)}")
    try:
        moment = msgspec.convert(value, datetime) if isinstance(value, str) else value
    except msgspec.ValidationError:
        moment = None
    if not isinstance(moment, datetime):
        raise _invalid(field, value, "a timestamp such as 2026-11-29T12:00:00Z")
    since = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()  # noqa: UP017 - core
    return since / UNITS_S[field.unit]


def _from_base64(value: Any, field: FieldSpec) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        if isinstance(value, str):
            return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        pass
    raise _invalid(field, value, "bytes in base64")


def _invalid(field: FieldSpec, value: Any, expected: str) -> InvalidField:
    return InvalidField(f"field {format_path(field.path)!r} is {describe(value)}, expected {expected}: correct it")


def _flatten(value: list[Any], field: FieldSpec) -> tuple[list[Any], tuple[int, ...]]:
    shape: list[int] = []
    level: list[Any] = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(not isinstance(each, list) or len(each) != size for each in level):
            raise InvalidField(
                f"field {format_path(field.path)!r} is a list whose parts differ in size: send parts of one size"
            )
        shape.append(size)
        level = [element for part in level for element in part]
    return level, tuple(shape)


def _fill(shape: Sequence[int | None], count: int) -> tuple[int, ...] | None:
    """Return a shape of `count` elements; None without one."""
    fixed = prod(axis for axis in shape if axis is not None)
    free = sum(axis is None for axis in shape)
    if free == 0:
        return tuple(axis or 0 for axis in shape) if fixed == count else None
    if not fixed or count % fixed or (free > 1 and count != fixed):
        return None
    return tuple(count // fixed if axis is None and free == 1 else axis or 1 for axis in shape)
