"""Frames of Kafka records between Java (`FrameSource`, `UnpackAnswers`) and Python operators.

Little-endian; sizes are i32; -1 is a missing value or timestamp.

    requests: count: i32, (size, partition: i32, offset: i64, timestamp_ms: i64) each, values,
        (index: i32, size, carried fields) of each record with carried fields
    claim of requests in Java's memory: -1: i32, size, address: i64
    answers: (key size, value size, key, value) each; (~key size, value size, key, value, size, fields) with them
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from anabranch.schemas.limits import FRAME_VIEW_FROM_BYTES
from anabranch.schemas.records import CarryingSource, Source
from anabranch.schemas.tensors import Buffer

#: First byte of a queued request in state; the count of its frame.
WAITING_VERSION = 1
#: With carried fields; a frame follows.
CARRYING_VERSION = 2
_CARRYING = bytes((CARRYING_VERSION,))
#: First byte of the mark of a begun request in state.
BEGUN_VERSION = 1
_COUNT = struct.Struct("<i")
_ONE = _COUNT.pack(1)
_REQUEST = struct.Struct("<iiqq")
_CLAIM = struct.Struct("<iiq")
_ANSWER = struct.Struct("<ii")
_CARRIED = struct.Struct("<ii")
_SIZE = struct.Struct("<i")
_BEGUN = struct.Struct("<B3xI")


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
    heads = list(_REQUEST.iter_unpack(view[_COUNT.size : at]))
    values_end = at + sum([head[0] for head in heads if head[0] > 0])
    carried = _read_carried(view, values_end, count) if values_end < len(frame) else None
    for index, (size, partition, offset, timestamp_ms) in enumerate(heads):
        fields = None if carried is None else carried[index]
        if fields:
            source: Source = CarryingSource(partition, offset, timestamp_ms, fields)
        else:
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


def _read_carried(view: memoryview, at: int, count: int) -> list[bytes | None]:
    """Return the carried fields of each record."""
    carried: list[bytes | None] = [None] * count
    rest, at, unpack, head_bytes = view[at:].tobytes(), 0, _CARRIED.unpack_from, _CARRIED.size
    end = len(rest)
    while at < end:
        index, size = unpack(rest, at)
        at += head_bytes
        carried[index] = rest[at : at + size]
        at += size
    return carried


def write_requests(records: Sequence[tuple[Buffer | None, Source]]) -> bytes:
    """Write a frame of requests, as Java does."""
    parts: list[Buffer] = [_COUNT.pack(len(records))]
    for value, source in records:
        size = -1 if value is None else len(value)
        parts.append(_REQUEST.pack(size, source.partition, source.offset, source.timestamp_ms))
    parts += [value or b"" for value, _ in records]
    for index, (_, source) in enumerate(records):
        if source.carried:
            parts += (_CARRIED.pack(index, len(source.carried)), source.carried)
    return b"".join(parts)


def write_waiting(value: Buffer, source: Source) -> bytes:
    """Encode a queued request for state; byte 0 is the version."""
    if source.carried:
        return _CARRYING + write_requests([(value, source)])
    head = _REQUEST.pack(len(value), source.partition, source.offset, source.timestamp_ms)
    return b"".join((_ONE, head, value))


def read_waiting(frame: Buffer) -> tuple[Buffer | None, Source]:
    """Decode a queued request, or raise struct.error or ValueError."""
    version = frame[0] if frame else None
    if version not in (WAITING_VERSION, CARRYING_VERSION):
        raise ValueError(f"a queued request of version {version}, expected 1 or 2: restore with its release")
    [request] = read_requests(frame[1:] if version == CARRYING_VERSION else frame)
    return request


def write_begun(rows: int) -> bytes:
    """Encode for state that records of a queued request left; byte 0 is the version.

    Args:
        rows: Of all members.
    """
    return _BEGUN.pack(BEGUN_VERSION, rows)


def read_begun(frame: Buffer) -> int:
    """Decode the rows, or raise struct.error or ValueError."""
    version, rows = _BEGUN.unpack(frame)
    if version != BEGUN_VERSION:
        raise ValueError(f"a begun request of version {version}, expected {BEGUN_VERSION}: restore with its release")
    return int(rows)


def write_answers(answers: Iterable[tuple[bytes, Buffer, bytes]]) -> bytes:
    """Write key, value and carried fields of each answer."""
    parts: list[Buffer] = []
    for key, value, carried in answers:
        if carried:
            parts += (_ANSWER.pack(~len(key), len(value)), key, value, _SIZE.pack(len(carried)), carried)
        else:
            parts += (_ANSWER.pack(len(key), len(value)), key, value)
    return b"".join(parts)


def read_answers(frame: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Read key, value and carried fields of each answer."""
    at = 0
    while at < len(frame):
        key_size, value_size = _ANSWER.unpack_from(frame, at)
        key_at = at + _ANSWER.size
        value_at = key_at + (key_size if key_size >= 0 else ~key_size)
        at = value_at + value_size
        key, value, carried = frame[key_at:value_at], frame[value_at:at], b""
        if key_size < 0:
            (size,) = _SIZE.unpack_from(frame, at)
            carried = frame[at + _SIZE.size : at + _SIZE.size + size]
            at += _SIZE.size + size
        yield key, value, carried
