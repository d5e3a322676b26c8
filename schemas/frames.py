"""Frames of Kafka records between Java (`FrameSource`, `UnpackAnswers`) and Python operators.

Little-endian; sizes are i32; -1 is a missing value or timestamp.

    requests: count: i32, (size, partition: i32, offset: i64, timestamp_ms: i64) each, values
    claim of requests in Java's memory: -1: i32, size, address: i64
    answers: (key size, value size, key, value) each
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from anabranch.schemas.limits import FRAME_VIEW_FROM_BYTES
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Buffer

#: First byte of a queued request in state.
WAITING_VERSION = 1
_COUNT = struct.Struct("<i")
_REQUEST = struct.Struct("<iiqq")
_CLAIM = struct.Struct("<iiq")
_ANSWER = struct.Struct("<ii")


def read_claim(frame: bytes) -> tuple[int, int] | None:
    """Read address and size of a claim; None for other frames."""
    if len(frame) != _CLAIM.size:
        return None
    mark, size_bytes, address = _CLAIM.unpack(frame)
    return (address, size_bytes) if mark < 0 else None


def read_requests(frame: Buffer) -> list[tuple[Buffer | None, Source]]:
    """Read value (None for a tombstone) and source of each request, or raise struct.error or ValueError."""
    if not frame:
        return []
    (count,) = _COUNT.unpack_from(frame)
    at = _COUNT.size + count * _REQUEST.size
    if at > len(frame):
        raise ValueError(
            f"the frame is cut short: {len(frame)} bytes, expected {at} for the headers of {count} records"
        )
    view, is_bytes = memoryview(frame), isinstance(frame, bytes)
    requests: list[tuple[Buffer | None, Source]] = []
    for size, partition, offset, timestamp_ms in _REQUEST.iter_unpack(view[_COUNT.size : at]):
        source = Source(partition, offset, timestamp_ms)
        if size < 0:
            requests.append((None, source))
        else:
            end = at + size
            if size >= FRAME_VIEW_FROM_BYTES:
                requests.append((view[at:end], source))
            else:
                requests.append((frame[at:end] if is_bytes else view[at:end].tobytes(), source))
            at = end
    return requests


def write_requests(records: Sequence[tuple[Buffer | None, Source]]) -> bytes:
    """Write a frame of requests."""
    parts: list[Buffer] = [_COUNT.pack(len(records))]
    for value, source in records:
        size = -1 if value is None else len(value)
        parts.append(_REQUEST.pack(size, source.partition, source.offset, source.timestamp_ms))
    return b"".join([*parts, *[value or b"" for value, _ in records]])


def write_waiting(value: Buffer, source: Source) -> bytes:
    """Encode a queued request for state; byte 0 is the version."""
    return write_requests([(value, source)])


def read_waiting(frame: Buffer) -> tuple[Buffer | None, Source]:
    """Decode a queued request, or raise struct.error or ValueError."""
    if not frame or frame[0] != WAITING_VERSION:
        found = frame[0] if frame else None
        raise ValueError(f"a queued request of version {found}, expected {WAITING_VERSION}: restore with its release")
    [request] = read_requests(frame)
    return request


def write_answers(answers: Iterable[tuple[bytes, Buffer]]) -> bytes:
    """Write key and value of each answer."""
    parts: list[Buffer] = []
    for key, value in answers:
        parts += (_ANSWER.pack(len(key), len(value)), key, value)
    return b"".join(parts)


def read_answers(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read key and value of each answer."""
    at = 0
    while at < len(frame):
        key_size, value_size = _ANSWER.unpack_from(frame, at)
        value_at = at + _ANSWER.size + key_size
        yield frame[at + _ANSWER.size : value_at], frame[value_at : value_at + value_size]
        at = value_at + value_size
