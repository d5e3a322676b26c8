"""Frames in Java's memory are read without a copy, and freed with the last view."""

import ctypes
import gc
import struct

import numpy as np
import pytest

from anabranch.operators.transport.frame_memory import HEADER_BYTES, open_frame
from anabranch.schemas.frames import read_requests, write_requests
from anabranch.schemas.records import Source

RECORDS = [(bytes([n]) * 70_000, Source(0, n, n)) for n in range(3)]


class Segment:
    """A segment as Java writes it."""

    def __init__(self, frame: bytes) -> None:
        self.memory = (ctypes.c_ubyte * (2 * 1024 * 1024))()
        self.memory[0] = 1
        ctypes.memmove(ctypes.addressof(self.memory) + HEADER_BYTES, frame, len(frame))
        self.claim = struct.pack("<iiq", -1, len(frame), ctypes.addressof(self.memory) + HEADER_BYTES)

    @property
    def in_use(self) -> bool:
        return any(self.memory[:8])


@pytest.fixture
def segment() -> Segment:
    return Segment(write_requests(RECORDS))


def test_open_frame_reads_javas_memory(segment: Segment) -> None:
    requests = read_requests(open_frame(segment.claim))
    assert requests == RECORDS
    segment.memory[HEADER_BYTES + 4 + 3 * 24] = 7
    value, _ = requests[0]
    assert value is not None
    assert value[0] == 7


def test_open_frame_is_read_only(segment: Segment) -> None:
    with pytest.raises(TypeError):
        open_frame(segment.claim)[0] = 7  # type: ignore[index]


@pytest.mark.slow
def test_open_frame_frees_the_segment_with_the_last_view(segment: Segment) -> None:
    requests = read_requests(open_frame(segment.claim))
    value, _ = requests.pop()
    assert value is not None
    requests.clear()
    tensor = np.frombuffer(value[8:], np.float32, 100, 1)
    del value
    gc.collect()
    assert segment.in_use
    assert tensor.tobytes() == bytes([2]) * 400
    del tensor
    gc.collect()
    assert not segment.in_use


def test_small_frame_is_copied_and_holds_no_segment() -> None:
    segment = Segment(write_requests([(b"value", Source(0, 0, 0))]))
    [(value, _)] = read_requests(open_frame(segment.claim))
    gc.collect()
    assert not segment.in_use
    assert value == b"value"


def test_open_frame_without_claim_returns_the_frame() -> None:
    frame = write_requests(RECORDS)
    assert open_frame(frame) is frame
