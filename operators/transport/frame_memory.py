"""Reads frames in Java's memory, within one process.

segment   | 1 in use, 0 free: i64 | ... | frame |    see `FrameMemory.java`
claim     address and size; see `anabranch.schemas.frames`
"""

import ctypes

from anabranch.operators.transport.memory_lease import lend
from anabranch.schemas.frames import read_claim
from anabranch.schemas.tensors import Buffer

#: As in `FrameMemory.java`.
HEADER_BYTES = 64
_SEGMENT_BYTES = 2 * 1024 * 1024
#: One type, because ctypes keeps all.
_Segment = ctypes.c_ubyte * _SEGMENT_BYTES


def open_frame(frame: bytes) -> Buffer:
    """Returns the frame, or a view of a claimed one; its last view frees the segment.

    Only the job's Java may write claims, which hold raw addresses.
    """
    claim = read_claim(frame)
    if claim is None:
        return frame
    address, size_bytes = claim
    segment = address - HEADER_BYTES
    whole = memoryview(_Segment.from_address(segment)).cast("B")
    return lend(whole, HEADER_BYTES, size_bytes, _give_back, segment)


def _give_back(segment: int) -> None:
    ctypes.c_int64.from_address(segment).value = 0
