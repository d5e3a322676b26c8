"""The records between tasks, one class for each kind.

Layout: header (byte 0 is the kind, byte 1 the version), id, signature, body, tensor sizes, 16-byte aligned tensors.
Decoded tensors and Kafka values are views. Times are Unix ms.

    kind       from -> to                       signature         body
    SHARD      serve -> infer                   Signature         -
    OPENING    serve -> aggregate               OpeningSignature  times, [carried fields,] Kafka value
    PARTIAL    infer, last stage -> aggregate   OutputSignature   times
    FAILURE    infer, stage -> aggregate        Failure           -
    UNIT       serve -> stage -> stage          Signature         times, segments
    BATCH      serve -> infer                   Signature         entries, ids, Kafka values, [carried fields]

Version 3 has carried fields. State holds OPENING and PARTIAL: new layouts need a reader of old ones (`records_v1`).
"""

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import ClassVar, TypeAlias

import msgspec
from msgspec.structs import replace

from anabranch.schemas.limits import TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.messages import Encoding
from anabranch.schemas.signatures import UNKNOWN_SIGNATURE, Failure, decode_failure, encode_signature
from anabranch.schemas.tensors import Buffer

VERSION = 2
CARRYING_VERSION = 3
NO_DEADLINE_MS = 0


class RecordKind(IntEnum):
    """The first byte of a record."""

    SHARD = 1
    OPENING = 2
    PARTIAL = 3
    FAILURE = 4
    UNIT = 5
    BATCH = 6


class Source(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The Kafka record of a request; `timestamp_ms` is -1 if missing."""

    carried: ClassVar[bytes] = b""

    partition: int
    offset: int
    timestamp_ms: int


class CarryingSource(Source, frozen=True, array_like=True, gc=False):
    """A Kafka record with `carried` fields."""

    carried: bytes = b""  # type: ignore[misc]


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of one request inside a record.

    Attributes:
        member: Index in the ensemble.
        first_row: Index in the request.
        rows: 1 without batch axis.
        total_rows: Rows of the request.
    """

    source: Source
    id: str = ""
    deadline_ms: int = NO_DEADLINE_MS
    member: int = 0
    first_row: int = 0
    rows: int = 1
    total_rows: int = 1


# A dictionary is ten times faster than calling the class.
_KINDS = {kind.value: kind for kind in RecordKind}
_ENCODINGS = {encoding.value: encoding for encoding in Encoding}
# Fields as in `_begin`.
_HEADER = struct.Struct("<BBBBHHIIIIIIiqqq")
# Fields before the segment's.
_PREFIX = struct.Struct("<BBBBHHII")
_SIZE = struct.Struct("<I")
_CARRYING_KINDS = (RecordKind.OPENING, RecordKind.BATCH)
_SIZES = tuple(struct.Struct(f"<{count}I") for count in range(16))
_OPENING_TIMES = struct.Struct("<dd")
_PARTIAL_TIMES = struct.Struct("<ddd")
_UNIT_TIMES = struct.Struct("<dd")
# Fields as in `_pack_entry`.
_ENTRY = struct.Struct("<BBHIIiiqqqdd")
_PADDING = tuple(bytes(size) for size in range(TENSOR_ALIGNMENT_BYTES))
_FLAG_PARTIAL_ALLOWED = 1
_FLAG_EXPLAIN = 2
_FLAG_WHOLE = 4


class _Record(msgspec.Struct, frozen=True, gc=False):
    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """Encode the record."""
        return b"".join(self.parts())


class ShardRecord(_Record, frozen=True, gc=False):
    """Some rows of a large request."""

    kind: ClassVar[RecordKind] = RecordKind.SHARD

    segment: Segment
    signature: bytes
    tensors: Sequence[Buffer] = ()

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        parts = _begin(RecordKind.SHARD, self.segment, self.signature, 0, len(self.tensors))
        _append_tensors(parts, 0, self.tensors)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "ShardRecord":
        """Decode a SHARD."""
        segment, _, _, count, signature, _, tensors_at = _open_segment(encoded, RecordKind.SHARD)
        return cls(segment, signature, read_tensors(memoryview(encoded), tensors_at, count))


class OpeningRecord(_Record, frozen=True, gc=False):
    """Opens the window of a request.

    Attributes:
        segment: All rows of the request.
        encoding: Of the answer.
        partial_allowed: The answer may lack rows.
        explain: The answer has a latency breakdown.
        original: The Kafka value, for a dead letter; may be empty.
    """

    kind: ClassVar[RecordKind] = RecordKind.OPENING

    segment: Segment
    signature: bytes
    encoding: Encoding = Encoding.PROTOBUF
    partial_allowed: bool = False
    explain: bool = False
    original: Buffer = b""
    read_ms: float = 0.0
    admitted_ms: float = 0.0

    @property
    def source(self) -> Source:
        """The Kafka record."""
        return self.segment.source

    @property
    def id(self) -> str:
        """The request's id."""
        return self.segment.id

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        flags = self.partial_allowed * _FLAG_PARTIAL_ALLOWED | self.explain * _FLAG_EXPLAIN
        times, original = _OPENING_TIMES.pack(self.read_ms, self.admitted_ms), self.original
        carried, version = self.segment.source.carried, VERSION
        if carried:
            times, version = b"".join((times, _SIZE.pack(len(carried)), carried)), CARRYING_VERSION
        body_size = len(times) + len(original)
        parts = _begin(RecordKind.OPENING, self.segment, self.signature, body_size, 0, flags, self.encoding, version)
        parts += (times, original)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "OpeningRecord":
        """Decode an OPENING."""
        segment, encoding, flags, _, signature, body_at, end = _open_segment(encoded, RecordKind.OPENING)
        if end != len(encoded):
            raise _wrong_size(len(encoded), end)
        read_ms, admitted_ms = _OPENING_TIMES.unpack_from(encoded, body_at)
        original_at = body_at + _OPENING_TIMES.size
        if encoded[1] == CARRYING_VERSION:
            segment, original_at = _read_carried(memoryview(encoded), segment, original_at)
        return cls(
            segment,
            signature,
            _ENCODINGS[encoding],
            bool(flags & _FLAG_PARTIAL_ALLOWED),
            bool(flags & _FLAG_EXPLAIN),
            memoryview(encoded)[original_at:],
            read_ms,
            admitted_ms,
        )


class PartialRecord(_Record, frozen=True, gc=False):
    """Outputs of some rows of a request.

    Attributes:
        outputs: An encoded `OutputSignature`.
        is_whole: True without batch axis.
        taken_ms: A task took the rows.
        started_ms: The session was called.
        ended_ms: The session returned.
    """

    kind: ClassVar[RecordKind] = RecordKind.PARTIAL

    segment: Segment
    outputs: bytes
    tensors: Sequence[Buffer] = ()
    is_whole: bool = False
    taken_ms: float = 0.0
    started_ms: float = 0.0
    ended_ms: float = 0.0

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        flags = self.is_whole * _FLAG_WHOLE
        parts = _begin(RecordKind.PARTIAL, self.segment, self.outputs, _PARTIAL_TIMES.size, len(self.tensors), flags)
        parts.append(_PARTIAL_TIMES.pack(self.taken_ms, self.started_ms, self.ended_ms))
        _append_tensors(parts, _PARTIAL_TIMES.size, self.tensors)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "PartialRecord":
        """Decode a PARTIAL."""
        segment, _, flags, count, outputs, body_at, tensors_at = _open_segment(encoded, RecordKind.PARTIAL)
        taken_ms, started_ms, ended_ms = _PARTIAL_TIMES.unpack_from(encoded, body_at)
        return cls(
            segment,
            outputs,
            read_tensors(memoryview(encoded), tensors_at, count),
            bool(flags & _FLAG_WHOLE),
            taken_ms,
            started_ms,
            ended_ms,
        )


class FailureRecord(_Record, frozen=True, gc=False):
    """Failed rows of a request."""

    kind: ClassVar[RecordKind] = RecordKind.FAILURE

    segment: Segment
    failure: Failure

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        return _begin(RecordKind.FAILURE, self.segment, encode_signature(self.failure), 0, 0)

    @classmethod
    def decode(cls, encoded: Buffer) -> "FailureRecord":
        """Decode a FAILURE."""
        segment, _, _, _, failure, _, end = _open_segment(encoded, RecordKind.FAILURE)
        if end != len(encoded):
            raise _wrong_size(len(encoded), end)
        return cls(segment, decode_failure(failure))


class _UnitBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    segments: tuple[Segment, ...]
    failure: Failure | None = None


_encode_struct = msgspec.msgpack.Encoder().encode
_unit_bodies = msgspec.msgpack.Decoder(_UnitBody)


class UnitRecord(_Record, frozen=True, gc=False):
    """Rows of requests on their way through stages.

    Attributes:
        segments: At least one, in the order of rows.
        is_whole: True without batch axis.
        taken_ms: The first stage took the rows; 0 before.
        ran_ms: Duration of sessions so far.
        failure: Of all rows, without tensors.
    """

    kind: ClassVar[RecordKind] = RecordKind.UNIT

    segments: tuple[Segment, ...]
    signature: bytes
    tensors: Sequence[Buffer] = ()
    is_whole: bool = False
    taken_ms: float = 0.0
    ran_ms: float = 0.0
    failure: Failure | None = None

    @property
    def rows(self) -> int:
        """Rows of all segments."""
        return sum([segment.rows for segment in self.segments])

    @property
    def deadline_ms(self) -> int:
        """The last deadline, or `NO_DEADLINE_MS`."""
        deadlines = [segment.deadline_ms for segment in self.segments]
        return NO_DEADLINE_MS if NO_DEADLINE_MS in deadlines else max(deadlines)

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        segments = _encode_struct((self.segments, self.failure))
        body_size = _UNIT_TIMES.size + len(segments)
        flags = self.is_whole * _FLAG_WHOLE
        parts = _begin(RecordKind.UNIT, self.segments[0], self.signature, body_size, len(self.tensors), flags)
        parts += (_UNIT_TIMES.pack(self.taken_ms, self.ran_ms), segments)
        _append_tensors(parts, body_size, self.tensors)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "UnitRecord":
        """Decode a UNIT."""
        flags, count, signature, body_at, tensors_at = _open(encoded, RecordKind.UNIT)
        view = memoryview(encoded)
        taken_ms, ran_ms = _UNIT_TIMES.unpack_from(encoded, body_at)
        unit = _unit_bodies.decode(view[body_at + _UNIT_TIMES.size : tensors_at])
        if not unit.segments:
            raise ValueError("a UNIT has 0 segments, expected at least 1")
        tensors = read_tensors(view, tensors_at, count)
        return cls(unit.segments, signature, tensors, bool(flags & _FLAG_WHOLE), taken_ms, ran_ms, unit.failure)


class BatchEntry(msgspec.Struct, frozen=True, gc=False):
    """A request of a BATCH; fields are as in `OpeningRecord`."""

    source: Source
    id: str = ""
    encoding: Encoding = Encoding.PROTOBUF
    deadline_ms: int = NO_DEADLINE_MS
    priority: int = 0
    partial_allowed: bool = False
    explain: bool = False
    rows: int = 1
    original: Buffer = b""
    read_ms: float = 0.0
    admitted_ms: float = 0.0


class BatchRecord(_Record, frozen=True, gc=False):
    """Whole requests that another task runs as a batch."""

    kind: ClassVar[RecordKind] = RecordKind.BATCH

    entries: Sequence[BatchEntry]
    signature: bytes
    tensors: Sequence[Buffer] = ()

    def parts(self) -> list[Buffer]:
        """Encode in parts."""
        entries = self.entries
        body: list[Buffer] = [b"", *[entry.id.encode() for entry in entries], *[entry.original for entry in entries]]
        packed = [_pack_entry(entry, len(name)) for entry, name in zip(entries, body[1:], strict=False)]
        body[0] = b"".join([_SIZE.pack(len(entries)), *packed])
        carried, version = [entry.source.carried for entry in entries], VERSION
        if any(carried):
            body += [_sizes(len(carried)).pack(*map(len, carried)), *carried]
            version = CARRYING_VERSION
        first, body_size = Segment(entries[0].source), sum(map(len, body))
        parts = _begin(
            RecordKind.BATCH, first, self.signature, body_size, len(self.tensors), flags=0, encoding=0, version=version
        )
        parts += body
        _append_tensors(parts, body_size, self.tensors)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "BatchRecord":
        """Decode a BATCH."""
        _, count, signature, body_at, tensors_at = _open(encoded, RecordKind.BATCH)
        view = memoryview(encoded)
        tensors = read_tensors(view, tensors_at, count)
        carries = encoded[1] == CARRYING_VERSION
        return cls(_read_entries(view[body_at:tensors_at], carries=carries), signature, tensors)


#: Records that can travel by shared memory.
ClaimableRecord: TypeAlias = ShardRecord | OpeningRecord | PartialRecord | UnitRecord
AnyRecord: TypeAlias = ClaimableRecord | FailureRecord | BatchRecord

RECORD_CLASSES: dict[RecordKind, type[AnyRecord]] = {
    RecordKind.SHARD: ShardRecord,
    RecordKind.OPENING: OpeningRecord,
    RecordKind.PARTIAL: PartialRecord,
    RecordKind.FAILURE: FailureRecord,
    RecordKind.UNIT: UnitRecord,
    RecordKind.BATCH: BatchRecord,
}


def check_record_classes(classes: Mapping[RecordKind, type[AnyRecord]]) -> None:
    """Raise NotImplementedError if a kind has no class."""
    wrong = [kind.name for kind in RecordKind if kind not in classes or classes[kind].kind is not kind]
    if wrong:
        raise NotImplementedError(f"no class for {', '.join(wrong)}: add it to schemas.records.RECORD_CLASSES")


check_record_classes(RECORD_CLASSES)


def kind_of(encoded: Buffer) -> RecordKind:
    """Return the kind of a record, or raise LookupError."""
    return _KINDS[encoded[0]]


def decode_record(encoded: Buffer) -> AnyRecord:
    """Decode a record, or raise struct.error, LookupError, ValueError or MsgspecError."""
    return RECORD_CLASSES[kind_of(encoded)].decode(encoded)


def encode_record(record: AnyRecord) -> bytes:
    """Encode the record."""
    return record.encode()


def head_of(record: ClaimableRecord) -> ClaimableRecord:
    """Return a record without tensors and Kafka value."""
    return replace(record, original=b"") if isinstance(record, OpeningRecord) else replace(record, tensors=())


def salvage_segments(encoded: Buffer) -> list[Segment]:
    """Read segments of a damaged record."""
    try:
        fields = _HEADER.unpack_from(encoded)
        kind, version, _, _, id_size, _, signature_size, body_size = fields[:8]
        if kind not in _KINDS or kind == RecordKind.BATCH or not _is_known(kind, version):
            return []
        view = memoryview(encoded)
        if kind == RecordKind.UNIT:
            body_at = _HEADER.size + id_size + signature_size
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return list(_unit_bodies.decode(view[body_at + _UNIT_TIMES.size : body_at + body_size]).segments)
        request_id = str(view[_HEADER.size : _HEADER.size + id_size], "utf-8", "replace")
        return [Segment(Source(*fields[12:15]), request_id, fields[15], *fields[8:12])]
    except struct.error:
        return []


def salvage_opening(encoded: Buffer) -> OpeningRecord | None:
    """Read the answer's fields of a damaged OPENING, or None."""
    segments = salvage_segments(encoded)
    if not segments or encoded[0] != RecordKind.OPENING:
        return None
    encoding, segment = _ENCODINGS.get(encoded[3], Encoding.PROTOBUF), segments[0]
    if encoded[1] == CARRYING_VERSION:
        fields = _HEADER.unpack_from(encoded)
        with suppress(struct.error, ValueError):
            body_at = _HEADER.size + fields[4] + fields[6]
            segment, _ = _read_carried(memoryview(encoded), segment, body_at + _OPENING_TIMES.size)
    return OpeningRecord(segment, encode_signature(UNKNOWN_SIGNATURE), encoding)


def salvage_entries(encoded: Buffer) -> list[BatchEntry]:
    """Read entries of a damaged BATCH."""
    try:
        fields = _HEADER.unpack_from(encoded)
        if fields[0] != RecordKind.BATCH or not _is_known(fields[0], fields[1]):
            return []
        body = memoryview(encoded)[_HEADER.size + fields[4] + fields[6] :]
        return _read_entries(body, damaged=True, carries=fields[1] == CARRYING_VERSION)
    except (struct.error, LookupError):
        return []


def _sizes(count: int) -> struct.Struct:
    return _SIZES[count] if count < len(_SIZES) else struct.Struct(f"<{count}I")


def _append_tensors(parts: list[Buffer], body_size: int, tensors: Sequence[Buffer]) -> None:
    parts.append(_sizes(len(tensors)).pack(*map(len, tensors)))
    at = _HEADER.size + len(parts[1]) + len(parts[2]) + body_size + _SIZE.size * len(tensors)
    for tensor in tensors:
        padding = -at % TENSOR_ALIGNMENT_BYTES
        parts += (_PADDING[padding], tensor)
        at += padding + len(tensor)


def read_tensors(view: memoryview, at: int, count: int) -> tuple[memoryview, ...]:
    """Return views of the tensors after a body, or raise struct.error or ValueError."""
    tensors = []
    sizes = _sizes(count).unpack_from(view, at)
    at += _SIZE.size * count
    for size in sizes:
        at += -at % TENSOR_ALIGNMENT_BYTES
        end = at + size
        tensors.append(view[at:end])
        at = end
    if at != len(view):
        raise _wrong_size(len(view), at)
    return tuple(tensors)


def _begin(
    kind: int,
    segment: Segment,
    signature: bytes,
    body_size: int,
    tensor_count: int,
    flags: int = 0,
    encoding: int = 0,
    version: int = VERSION,
) -> list[Buffer]:
    request_id = segment.id.encode()
    source = segment.source
    header = _HEADER.pack(
        kind,
        version,
        flags,
        encoding,
        len(request_id),
        tensor_count,
        len(signature),
        body_size,
        segment.member,
        segment.first_row,
        segment.rows,
        segment.total_rows,
        source.partition,
        source.offset,
        source.timestamp_ms,
        segment.deadline_ms,
    )
    return [header, request_id, signature]


def _open(encoded: Buffer, wanted: int) -> tuple[int, int, bytes, int, int]:
    kind, version, flags, _, id_size, tensor_count, signature_size, body_size = _PREFIX.unpack_from(encoded)
    if kind != wanted or (version != VERSION and not _is_known(kind, version)):
        raise _unexpected(kind, version, wanted)
    signature_at = _HEADER.size + id_size
    body_at = signature_at + signature_size
    return flags, tensor_count, bytes(encoded[signature_at:body_at]), body_at, body_at + body_size


def _open_segment(encoded: Buffer, wanted: int) -> tuple[Segment, int, int, int, bytes, int, int]:
    # Repeats `_open`, since a second call costs 5 %.
    (
        kind,
        version,
        flags,
        encoding,
        id_size,
        tensor_count,
        signature_size,
        body_size,
        member,
        first_row,
        rows,
        total_rows,
        partition,
        offset,
        timestamp_ms,
        deadline_ms,
    ) = _HEADER.unpack_from(encoded)
    if kind != wanted or (version != VERSION and not _is_known(kind, version)):
        raise _unexpected(kind, version, wanted)
    signature_at = _HEADER.size + id_size
    body_at = signature_at + signature_size
    return (
        Segment(
            Source(partition, offset, timestamp_ms),
            bytes(encoded[_HEADER.size : signature_at]).decode(),
            deadline_ms,
            member,
            first_row,
            rows,
            total_rows,
        ),
        encoding,
        flags,
        tensor_count,
        bytes(encoded[signature_at:body_at]),
        body_at,
        body_at + body_size,
    )


def _is_known(kind: int, version: int) -> bool:
    return version == VERSION or (version == CARRYING_VERSION and kind in _CARRYING_KINDS)


def _read_carried(view: memoryview, segment: Segment, at: int) -> tuple[Segment, int]:
    """Return the segment with the carried fields, and their end."""
    (size,) = _SIZE.unpack_from(view, at)
    end = at + _SIZE.size + size
    if end > len(view):
        raise _wrong_size(len(view), end)
    return replace(segment, source=_carrying(segment.source, view[at + _SIZE.size : end])), end


def _carrying(source: Source, carried: memoryview) -> Source:
    return CarryingSource(source.partition, source.offset, source.timestamp_ms, carried.tobytes())


def _wrong_size(found: int, expected: int) -> ValueError:
    return ValueError(f"the record has {found} bytes, expected {expected}: it is cut short or damaged")


def _unexpected(kind: int, version: int, wanted: int) -> ValueError:
    return ValueError(f"a record of kind {kind}, version {version}; expected kind {wanted:d}, version {VERSION}")


def _pack_entry(entry: BatchEntry, id_size: int) -> bytes:
    source = entry.source
    return _ENTRY.pack(
        entry.encoding,
        entry.partial_allowed * _FLAG_PARTIAL_ALLOWED | entry.explain * _FLAG_EXPLAIN,
        id_size,
        entry.rows,
        len(entry.original),
        source.partition,
        entry.priority,
        source.offset,
        source.timestamp_ms,
        entry.deadline_ms,
        entry.read_ms,
        entry.admitted_ms,
    )


def _read_entries(body: memoryview, *, damaged: bool = False, carries: bool = False) -> list[BatchEntry]:
    (count,) = _SIZE.unpack_from(body)
    ids_at = _SIZE.size + _ENTRY.size * count
    if damaged:
        count = min(count, (len(body) - _SIZE.size) // _ENTRY.size)
    packed = list(_ENTRY.iter_unpack(body[_SIZE.size : _SIZE.size + _ENTRY.size * count]))
    originals_at = ids_at + sum([fields[2] for fields in packed])
    entries = []
    for (
        encoding,
        flags,
        id_size,
        rows,
        original_size,
        partition,
        priority,
        offset,
        timestamp_ms,
        deadline_ms,
        read_ms,
        admitted_ms,
    ) in packed:
        request_id, original = body[ids_at : ids_at + id_size], body[originals_at : originals_at + original_size]
        if damaged:
            request_id = request_id if len(request_id) == id_size else body[:0]
            original = original if len(original) == original_size else body[:0]
        entries.append(
            BatchEntry(
                Source(partition, offset, timestamp_ms),
                str(request_id, "utf-8", "replace" if damaged else "strict"),
                _ENCODINGS[encoding],
                deadline_ms,
                priority,
                bool(flags & _FLAG_PARTIAL_ALLOWED),
                bool(flags & _FLAG_EXPLAIN),
                rows,
                original,
                read_ms,
                admitted_ms,
            )
        )
        ids_at += id_size
        originals_at += original_size
    if carries:
        originals_at = _add_carried(body, originals_at, entries, damaged=damaged)
    if not damaged and (not entries or originals_at != len(body)):
        raise ValueError(
            f"{len(entries)} entries in {len(body)} bytes, expected {originals_at} bytes and 1 entry or more"
        )
    return entries


def _add_carried(body: memoryview, at: int, entries: list[BatchEntry], *, damaged: bool) -> int:
    try:
        sizes = _sizes(len(entries)).unpack_from(body, at)
    except struct.error:
        if damaged:
            return at
        raise
    at += _SIZE.size * len(sizes)
    for index, size in enumerate(sizes):
        if size and at + size <= len(body):
            entry = entries[index]
            entries[index] = replace(entry, source=_carrying(entry.source, body[at : at + size]))
        at += size
    return at
