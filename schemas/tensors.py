"""Tensors as views over the bytes they travelled in: the protocol's datatypes, its raw layout, numpy on top.

Raw layout (Open Inference Protocol and Triton's binary extension): little-endian, row-major, no padding. A BYTES
element is a 4-byte unsigned little-endian length followed by that many bytes.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from anabranch.schemas.errors import MalformedRequest, WrongDatatype, WrongSize
from anabranch.schemas.limits import MAX_RANK, MAX_TENSOR_BYTES

Buffer: TypeAlias = bytes | memoryview
Array: TypeAlias = npt.NDArray[Any]

BYTES = "BYTES"

#: numpy's dtype for every fixed-size datatype of the protocol.
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
_LARGEST_ITEM_BYTES = 8
_LENGTH = struct.Struct("<I")


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor in the protocol's raw layout.

    Attributes:
        name: The input or output of the model that it belongs to.
        datatype: One of `DATATYPES`.
        shape: Every axis, the batch axis first where the model has one.
        data: The raw bytes; a view into the message that it came in wherever that is possible.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    def to_array(self) -> Array:
        """The tensor as a numpy array: a read-only view of `data`, except for BYTES, which gives an object array.

        Raises:
            WrongSize: `data` is longer or shorter than `shape` says.
            WrongDatatype: The datatype is not one of the protocol's.
        """
        return array_from_raw(self.datatype, self.shape, self.data)

    @classmethod
    def from_array(cls, name: str, array: npt.ArrayLike) -> "Tensor":
        """The tensor of a numpy array; a contiguous array is not copied, so do not write to it afterwards.

        Strings and bytes (dtype object, `U` or `S`) become BYTES.

        Raises:
            WrongDatatype: The protocol has no datatype for the array's dtype.
        """
        values = np.asarray(array)
        datatype = datatype_of(values.dtype)
        return cls(name, datatype, values.shape, raw_from_array(values))


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """The protocol's name of a numpy dtype.

    Raises:
        WrongDatatype: The protocol has none (complex numbers, dates, structured types).
    """
    if dtype.kind in "OUS":
        return BYTES
    try:
        return _DATATYPE_OF_DTYPE[dtype.newbyteorder("<")]
    except KeyError:
        raise WrongDatatype(f"the protocol has no datatype for numpy's {dtype}") from None


def raw_size_bytes(datatype: str, shape: Sequence[int]) -> int | None:
    """How long a tensor's raw data must be; None for BYTES, whose elements vary.

    Raises:
        WrongDatatype: The datatype is not one of the protocol's.
    """
    if datatype == BYTES:
        return None
    try:
        return NUMPY_DTYPES[datatype].itemsize * prod(shape)
    except KeyError:
        raise WrongDatatype(f"unknown datatype {datatype!r}: the protocol has {', '.join(sorted(DATATYPES))}") from None


def array_from_raw(datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """See `Tensor.to_array`."""
    if datatype == BYTES:
        return _object_array(bytes_elements(data, prod(shape)), shape)
    size_bytes = raw_size_bytes(datatype, shape)
    if len(data) != size_bytes:
        raise WrongSize(f"{len(data)} bytes of data, but {datatype} {list(shape)} takes {size_bytes}")
    return np.frombuffer(data, NUMPY_DTYPES[datatype]).reshape(shape)


def raw_from_array(array: Array) -> Buffer:
    """An array in the raw layout; a view of its memory where it is contiguous and little-endian already."""
    if array.dtype.kind in "OUS":
        return raw_from_elements(array.ravel().tolist())
    contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    # An empty or 0-d array has no memory that memoryview could cast.
    return contiguous.data.cast("B") if contiguous.size and contiguous.ndim else contiguous.tobytes()


def raw_from_elements(elements: Iterable[bytes | str]) -> bytes:
    """BYTES elements in the raw layout; strings are encoded as UTF-8.

    Raises:
        WrongDatatype: An element is neither bytes nor a string, or a string that UTF-8 cannot hold.
    """
    parts: list[bytes] = []
    for element in elements:
        try:
            # bytes() would make seven zeros of the integer 7.
            encoded = element.encode() if isinstance(element, str) else memoryview(element).tobytes()
        except (TypeError, UnicodeEncodeError) as error:
            raise WrongDatatype(f"{element!r} cannot be an element of a BYTES tensor: {error}") from None
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def bytes_elements(data: Buffer, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in the raw layout.

    Raises:
        WrongSize: There are more or fewer than `count` elements, or the last one is cut short.
    """
    offsets = bytes_offsets(data, count)
    return [bytes(data[start + 4 : end]) for start, end in pairwise(offsets)]


def bytes_offsets(data: Buffer, count: int) -> list[int]:
    """Where each of `count` BYTES elements starts (its length included), and where the last one ends.

    Raises:
        WrongSize: There are more or fewer than `count` elements, or the last one is cut short.
    """
    offsets, position, end = [0], 0, len(data)
    while position < end and len(offsets) <= count:
        if end - position < 4:
            raise WrongSize("a BYTES element is cut short in its length")
        position += 4 + _LENGTH.unpack_from(data, position)[0]
        offsets.append(position)
    if position != end or len(offsets) != count + 1:
        raise WrongSize(f"BYTES data of {end} bytes does not hold exactly {count} elements")
    return offsets


def check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that numpy can hold.

    Raises:
        MalformedRequest: A negative axis, or more axes or elements than numpy allows.
    """
    if len(shape) > MAX_RANK:
        raise MalformedRequest(f"tensor {name!r} has {len(shape)} axes; at most {MAX_RANK} are possible")
    if any(axis < 0 for axis in shape):
        raise MalformedRequest(f"tensor {name!r} has a negative axis in its shape {list(shape)}")
    # numpy counts an empty tensor's other axes all the same: [0, 2**62] is too big for it.
    if prod(filter(None, shape)) * _LARGEST_ITEM_BYTES > MAX_TENSOR_BYTES:
        raise MalformedRequest(f"tensor {name!r} has a shape of more elements than any memory holds")
    return tuple(shape)


def _object_array(elements: Sequence[object], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
