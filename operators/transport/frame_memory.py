"""Frames of requests that Python reads where Java wrote them: both are in one process.

    flink_job/java/FrameMemory.java   | 1 in use, 0 free: i64 | ... | frame |   segments that are never freed
    claim                             address and size of the frame, as `anabranch.schemas.frames` lays it out
    open_frame                        a view of it; when the last view of the frame or of any request in it is dropped,
                                      the segment is free, and Java writes the next frame there

On its other way a frame is copied once more by JNI, and once more into Python's bytes.
"""

import ctypes

from anabranch.operators.transport.memory_lease import lend
from anabranch.schemas.frames import read_claim
from anabranch.schemas.tensors import Buffer

#: As in `FrameMemory.java`.
HEADER_BYTES = 64
_SEGMENT_BYTES = 2 * 1024 * 1024
#: One type for all of them: ctypes keeps every type of array that it has made.
_Segment = ctypes.c_ubyte * _SEGMENT_BYTES


def open_frame(frame: bytes) -> Buffer:
    """The frame itself, or a view of what lies where it says.

    Args:
        frame: As it came from Java: whoever else made it could have it say any address.
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
