"""What the job's Java operators and its Python operators hand each other: many Kafka records at once.

Crossing from Java into Python and back costs as much as all that we do with a small request, so requests cross
together, as many as are there (`flink_job/java/FrameSource.java`), and so do answers (`UnpackAnswers.java`).
Numbers are little-endian; a size of -1 is a value of none, a timestamp of -1 is none.

    requests: | count: i32 | for each: value's size: i32, partition: i32, offset: i64, timestamp, ms: i64 | values |
    claim:    | -1: i32 | size: i32 | address: i64 |   of requests that stay where Java wrote them (`frame_memory`)
    answers:  for each | key's size: i32 | value's size: i32 | key | value |
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from anabranch.schemas.limits import FRAME_VIEW_FROM_BYTES
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Buffer

#: First byte of a queued request in Flink's state.
WAITING_VERSION = 1
_COUNT = struct.Struct("<i")
_REQUEST = struct.Struct("<iiqq")
_CLAIM = struct.Struct("<iiq")
_ANSWER = struct.Struct("<ii")


def read_claim(frame: bytes) -> tuple[int, int] | None:
    """Address and size, in bytes, of the frame of requests that lies elsewhere; None where this is one itself."""
    if len(frame) != _CLAIM.size:
        return None
    mark, size_bytes, address = _CLAIM.unpack(frame)
    return (address, size_bytes) if mark < 0 else None


def read_requests(frame: Buffer) -> list[tuple[Buffer | None, Source]]:
    """The value of every Kafka record in a frame (None for a tombstone), and where it came from.

    What is large is a view of the frame, what is small is `bytes`.

    Raises:
        struct.error, ValueError: It ends within its headers.
    """
    if not frame:
        return []
    (count,) = _COUNT.unpack_from(frame)
    at = _COUNT.size + count * _REQUEST.size
    if at > len(frame):
        raise ValueError(f"a frame of {count} records in {len(frame)} bytes")
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
    """The frame of Kafka records; what `FrameSource.java` does."""
    parts: list[Buffer] = [_COUNT.pack(len(records))]
    for value, source in records:
        size = -1 if value is None else len(value)
        parts.append(_REQUEST.pack(size, source.partition, source.offset, source.timestamp_ms))
    return b"".join([*parts, *[value or b"" for value, _ in records]])


def write_waiting(value: Buffer, source: Source) -> bytes:
    """Encodes a queued request for state: a frame of one request.

    Its first byte is the low byte of the count, and so always 1. It is declared the version of the layout in state.
    """
    return write_requests([(value, source)])


def read_waiting(frame: Buffer) -> tuple[Buffer | None, Source]:
    """Decodes a queued request from state.

    Raises:
        struct.error, ValueError: The bytes are not a queued request of version 1.
    """
    if not frame or frame[0] != WAITING_VERSION:
        raise ValueError(f"a queued request of version {frame[0] if frame else None}, expected {WAITING_VERSION}")
    [request] = read_requests(frame)
    return request


def write_answers(answers: Iterable[tuple[bytes, Buffer]]) -> bytes:
    """The frame of answers, each a Kafka record's key and value."""
    parts: list[Buffer] = []
    for key, value in answers:
        parts += (_ANSWER.pack(len(key), len(value)), key, value)
    return b"".join(parts)


def read_answers(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every answer in a frame; what the Java operator does, for tests."""
    at = 0
    while at < len(frame):
        key_size, value_size = _ANSWER.unpack_from(frame, at)
        value_at = at + _ANSWER.size + key_size
        yield frame[at + _ANSWER.size : value_at], frame[value_at : value_at + value_size]
        at = value_at + value_size
