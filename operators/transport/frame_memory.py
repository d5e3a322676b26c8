"""Frames in Java's memory of this process.

segment   | 1 in use, 0 free: i64 | ... | frame |    see `FrameMemory.java`
"""

import ctypes

from anabranch.operators.transport.memory_lease import lend
from anabranch.schemas.frames import read_claim
from anabranch.schemas.tensors import Buffer

HEADER_BYTES = 64
_SEGMENT_BYTES = 2 * 1024 * 1024
#: Once, because ctypes keeps types.
_Segment = ctypes.c_ubyte * _SEGMENT_BYTES


def open_frame(frame: bytes) -> Buffer:
    """Return the frame or a view of a claimed one, whose address it trusts."""
    claim = read_claim(frame)
    if claim is None:
        return frame
    address, size_bytes = claim
    segment = address - HEADER_BYTES
    whole = memoryview(_Segment.from_address(segment)).cast("B")
    return lend(whole, HEADER_BYTES, size_bytes, _give_back, segment)


def _give_back(segment: int) -> None:
    ctypes.c_int64.from_address(segment).value = 0
