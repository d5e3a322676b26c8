"""Tensors as views of raw bytes.

Raw layout (Open Inference Protocol): little-endian, row-major; a BYTES element is a u32 length and its bytes.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from anabranch.schemas.errors import MalformedRequest, RequestTooLarge, WrongDatatype, WrongSize
from anabranch.schemas.limits import MAX_BYTES_ELEMENTS, MAX_RANK, MAX_TENSOR_BYTES, MAX_TYPED_ELEMENTS

Buffer: TypeAlias = bytes | memoryview
Array: TypeAlias = npt.NDArray[Any]

BYTES = "BYTES"

#: Dtypes of the protocol's fixed-size datatypes.
NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
FLOATS = frozenset({"FP16", "FP32", "FP64"})
DATATYPES = frozenset(NUMPY_DTYPES) | {BYTES}
_DATATYPE_OF_DTYPE = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_AVAILABLE = ", ".join(sorted(DATATYPES))
_LARGEST_ITEM_BYTES = 8
_LENGTH = struct.Struct("<I")


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor.

    Attributes:
        datatype: One of `DATATYPES`.
        shape: All axes, the batch axis first.
        data: In the raw layout.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    def to_array(self) -> Array:
        """Return a read-only view (an object array of BYTES), or raise `WrongSize` or `WrongDatatype`."""
        return array_from_raw(self.datatype, self.shape, self.data)

    @classmethod
    def from_array(cls, name: str, array: npt.ArrayLike) -> "Tensor":
        """Make a tensor, often a view, so do not write to the array; or raise `WrongDatatype`."""
        values = np.asarray(array)
        if values.dtype.kind in "SU" and not isinstance(array, np.ndarray):
            # NumPy's texts and bytes lose their trailing NULs.
            values = np.array(array, dtype=object)
        datatype = datatype_of(values.dtype)
        return cls(name, datatype, values.shape, raw_from_array(values))


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """Return the datatype of a dtype, or raise `WrongDatatype`."""
    if dtype.kind in "OUS":
        return BYTES
    try:
        return _DATATYPE_OF_DTYPE[dtype.newbyteorder("<")]
    except KeyError:
        raise WrongDatatype(f"no datatype for dtype {dtype}; available: {_AVAILABLE}") from None


def fits(found: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Compare shapes."""
    return len(found) == len(expected) and all(
        axis is None or axis == size for size, axis in zip(found, expected, strict=True)
    )


def show_axes(shape: Sequence[int | None]) -> str:
    """Return a shape for people; an open axis is `any`."""
    return f"[{', '.join('any' if axis is None else str(axis) for axis in shape)}]"


def unknown_datatype(datatype: str, where: str = "") -> WrongDatatype:
    """Error for an unknown datatype."""
    return WrongDatatype(f"{where}unknown datatype {datatype!r}; available: {_AVAILABLE}")


def wrong_count(name: str, found: int, shape: Sequence[int], count: int) -> WrongSize:
    """Error for data that do not fill the shape."""
    return WrongSize(f"tensor {name!r} has {found} elements, expected {count} for {list(shape)}: send as many")


def out_of_range(name: str, datatype: str) -> MalformedRequest:
    """Error for an element out of range."""
    return MalformedRequest(f"tensor {name!r} has an element out of the range of {datatype}: send values in range")


def raw_size_bytes(datatype: str, shape: Sequence[int]) -> int | None:
    """Return the size, None for BYTES, or raise `WrongDatatype`."""
    if datatype == BYTES:
        return None
    try:
        return NUMPY_DTYPES[datatype].itemsize * prod(shape)
    except KeyError:
        raise unknown_datatype(datatype) from None


def array_from_raw(datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """Do the same as `Tensor.to_array`."""
    if datatype == BYTES:
        return _object_array(bytes_elements(data, prod(shape)), shape)
    size_bytes = raw_size_bytes(datatype, shape)
    if len(data) != size_bytes:
        raise WrongSize(f"{len(data)} bytes, expected {size_bytes} for {datatype} {list(shape)}: send data of its size")
    return np.frombuffer(data, NUMPY_DTYPES[datatype]).reshape(shape)


def raw_from_array(array: Array) -> Buffer:
    """Return the raw layout, as a view if possible."""
    if array.dtype.kind in "OUS":
        return raw_from_elements(array.ravel().tolist())
    contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    # memoryview cannot cast empty and 0-d arrays.
    return contiguous.data.cast("B") if contiguous.size and contiguous.ndim else contiguous.tobytes()


def raw_from_elements(elements: Iterable[bytes | str]) -> bytes:
    """Join BYTES elements, strings as UTF-8, or raise `WrongDatatype`."""
    parts: list[bytes] = []
    for element in elements:
        try:
            # bytes(7) would be seven zeros.
            encoded = element.encode() if isinstance(element, str) else memoryview(element).tobytes()
        except (TypeError, UnicodeEncodeError) as error:
            raise WrongDatatype(f"BYTES element {element!r} is invalid, expected bytes or a string: {error}") from None
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def bytes_elements(data: Buffer, count: int) -> list[bytes]:
    """Split raw BYTES, or raise `WrongSize`."""
    offsets = bytes_offsets(data, count)
    return [bytes(data[start + 4 : end]) for start, end in pairwise(offsets)]


def bytes_offsets(data: Buffer, count: int) -> list[int]:
    """Return the offsets of raw BYTES elements and the end, or raise `WrongSize`."""
    offsets, position, end = [0], 0, len(data)
    while position < end and len(offsets) <= count:
        if end - position < 4:
            raise WrongSize(f"BYTES element {len(offsets) - 1} ends within its length: send a u32 length and its bytes")
        position += 4 + _LENGTH.unpack_from(data, position)[0]
        offsets.append(position)
    if position != end or len(offsets) != count + 1:
        raise WrongSize(f"{end} bytes of BYTES data do not hold {count} elements: send as many as the shape says")
    return offsets


def check_count(name: str, datatype: str, shape: Sequence[int], *, is_raw: bool) -> None:
    """Raise `RequestTooLarge` for too many elements."""
    limit = MAX_BYTES_ELEMENTS if datatype == BYTES else None if is_raw else MAX_TYPED_ELEMENTS
    if limit is not None and prod(shape) > limit:
        remedy = "send fewer rows at a time" if is_raw or datatype == BYTES else "send protobuf with raw contents"
        raise RequestTooLarge(f"input {name!r} has {prod(shape)} elements, at most {limit} are allowed: {remedy}")


def check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that numpy can hold, or raise `MalformedRequest`."""
    if len(shape) > MAX_RANK:
        raise MalformedRequest(f"tensor {name!r} has {len(shape)} axes, expected at most {MAX_RANK}: send fewer axes")
    if any(axis < 0 for axis in shape):
        raise MalformedRequest(
            f"tensor {name!r} has a negative axis in shape {list(shape)}: send the size of each axis"
        )
    # numpy refuses [0, 2**62] too.
    if prod(filter(None, shape)) * _LARGEST_ITEM_BYTES > MAX_TENSOR_BYTES:
        raise MalformedRequest(f"tensor {name!r} has more elements than an array can hold: send a smaller shape")
    return tuple(shape)


def _object_array(elements: Sequence[object], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
