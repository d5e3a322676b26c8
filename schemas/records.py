"""The records between tasks: a class for each kind, over one header.

    +--------+----+-----------+------+--------------+---------+--------+---------+--------+
    | header | id | signature | body | tensor sizes | padding | tensor | padding | tensor |
    +--------+----+-----------+------+--------------+---------+--------+---------+--------+

    kind       from -> to                       signature         body
    SHARD      serve -> infer                   Signature         -
    OPENING    serve -> aggregate               OpeningSignature  times, the Kafka record's value
    PARTIAL    infer, last stage -> aggregate   OutputSignature   times
    FAILURE    infer, stage -> aggregate        Failure           -
    UNIT       serve -> stage -> stage          Signature         times, segments
    BATCH      serve -> infer                   Signature         entries, ids, the Kafka records' values

Byte 0 of the header is the kind, byte 1 the version of the layout. Padding puts every tensor on a 16-byte boundary.
Decoding copies no tensor: tensors and Kafka values are views of the record. OPENING and PARTIAL are also kept in
Flink's state, so a change of their layout needs a new version, and code that reads the old one (`records_v1`).
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
NO_DEADLINE_MS = 0


class RecordKind(IntEnum):
    """The first byte of a record."""

    #: Some rows of one large request.
    SHARD = 1
    #: Opens the window of a request that was split, or goes through stages.
    OPENING = 2
    #: Outputs of some rows.
    PARTIAL = 3
    #: Rows that failed.
    FAILURE = 4
    #: Rows of one or more requests on their way through the stages of a model.
    UNIT = 5
    #: Whole requests that share a batch, on their way to another task.
    BATCH = 6


class Source(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The place of a request in Kafka: unique, and the same after a replay.

    Attributes:
        timestamp_ms: The Kafka record's timestamp; -1 without one.
    """

    partition: int
    offset: int
    timestamp_ms: int


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of one request inside a record.

    Attributes:
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        member: Index of the ensemble's member for which the rows are; 0 for a plain model.
        first_row: The request's row that is row 0 of the segment.
        rows: Rows of the segment; 1 for a model without batch axis.
        total_rows: Rows of the whole request.
    """

    source: Source
    id: str = ""
    deadline_ms: int = NO_DEADLINE_MS
    member: int = 0
    first_row: int = 0
    rows: int = 1
    total_rows: int = 1


_KINDS = {kind.value: kind for kind in RecordKind}
#: A dictionary is ten times faster than calling the class.
_ENCODINGS = {encoding.value: encoding for encoding in Encoding}
# kind, version, flags, encoding, id's size, tensors, signature's size, body's size, member, first row, rows, total
# rows, partition, offset, timestamp, deadline
_HEADER = struct.Struct("<BBBBHHIIIIIIiqqq")
#: The header's fields that do not belong to the segment.
_PREFIX = struct.Struct("<BBBBHHII")
_SIZE = struct.Struct("<I")
_SIZES = tuple(struct.Struct(f"<{count}I") for count in range(16))
_OPENING_TIMES = struct.Struct("<dd")
_PARTIAL_TIMES = struct.Struct("<ddd")
_UNIT_TIMES = struct.Struct("<dd")
# encoding, flags, id's size, rows, original's size, partition, priority, offset, timestamp, deadline, read, admitted
_ENTRY = struct.Struct("<BBHIIiiqqqdd")
_PADDING = tuple(bytes(size) for size in range(TENSOR_ALIGNMENT_BYTES))
_FLAG_PARTIAL_ALLOWED = 1
_FLAG_EXPLAIN = 2
_FLAG_WHOLE = 4


class ShardRecord(msgspec.Struct, frozen=True):
    """Some rows of one request.

    Attributes:
        signature: An encoded `Signature`.
        tensors: Raw bytes of each input, in the signature's order.
    """

    kind: ClassVar[RecordKind] = RecordKind.SHARD

    segment: Segment
    signature: bytes
    tensors: Sequence[Buffer] = ()

    def parts(self) -> list[Buffer]:
        """The record as bytes to be joined."""
        parts = _begin(RecordKind.SHARD, self.segment, self.signature, 0, len(self.tensors))
        append_tensors(parts, self.tensors)
        return parts

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "ShardRecord":
        """Decodes a SHARD.

        Raises:
            struct.error, LookupError, ValueError: The bytes are not a SHARD of this version.
        """
        segment, _, _, count, signature, _, tensors_at = _open_segment(encoded, RecordKind.SHARD)
        return cls(segment, signature, read_tensors(memoryview(encoded), tensors_at, count))


class OpeningRecord(msgspec.Struct, frozen=True):
    """The request of a window.

    Attributes:
        segment: All rows of the request.
        signature: An encoded `OpeningSignature`.
        encoding: The encoding of the answer.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer says how the request was run.
        original: The Kafka record's value, for a dead letter.
        read_ms: Unix time at which a task read the request.
        admitted_ms: Unix time at which it was found valid.
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
        """The request's place in Kafka."""
        return self.segment.source

    @property
    def id(self) -> str:
        """The request's id."""
        return self.segment.id

    def parts(self) -> list[Buffer]:
        """The record as bytes to be joined."""
        flags = self.partial_allowed * _FLAG_PARTIAL_ALLOWED | self.explain * _FLAG_EXPLAIN
        times, original = _OPENING_TIMES.pack(self.read_ms, self.admitted_ms), self.original
        body_size = len(times) + len(original)
        parts = _begin(RecordKind.OPENING, self.segment, self.signature, body_size, 0, flags, self.encoding)
        parts += (times, original)
        return parts

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "OpeningRecord":
        """Decodes an OPENING.

        Raises:
            struct.error, LookupError, ValueError: The bytes are not an OPENING of this version.
        """
        segment, encoding, flags, _, signature, body_at, end = _open_segment(encoded, RecordKind.OPENING)
        if end != len(encoded):
            raise ValueError(f"a record of {end} bytes in {len(encoded)} bytes")
        read_ms, admitted_ms = _OPENING_TIMES.unpack_from(encoded, body_at)
        return cls(
            segment,
            signature,
            _ENCODINGS[encoding],
            bool(flags & _FLAG_PARTIAL_ALLOWED),
            bool(flags & _FLAG_EXPLAIN),
            memoryview(encoded)[body_at + _OPENING_TIMES.size :],
            read_ms,
            admitted_ms,
        )


class PartialRecord(msgspec.Struct, frozen=True):
    """Outputs of some rows of one request.

    Attributes:
        outputs: An encoded `OutputSignature`.
        tensors: Raw bytes of each output, in the signature's order.
        is_whole: Whether the model has no batch axis, so that the shapes in `outputs` have all axes.
        taken_ms: Unix time at which a task took the rows.
        started_ms: Unix time at which the session was called.
        ended_ms: Unix time at which it returned.
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
        """The record as bytes to be joined."""
        flags = self.is_whole * _FLAG_WHOLE
        parts = _begin(RecordKind.PARTIAL, self.segment, self.outputs, _PARTIAL_TIMES.size, len(self.tensors), flags)
        parts.append(_PARTIAL_TIMES.pack(self.taken_ms, self.started_ms, self.ended_ms))
        append_tensors(parts, self.tensors)
        return parts

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "PartialRecord":
        """Decodes a PARTIAL.

        Raises:
            struct.error, LookupError, ValueError: The bytes are not a PARTIAL of this version.
        """
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


class FailureRecord(msgspec.Struct, frozen=True):
    """Rows of one request that failed."""

    kind: ClassVar[RecordKind] = RecordKind.FAILURE

    segment: Segment
    failure: Failure

    def parts(self) -> list[Buffer]:
        """The record as bytes to be joined."""
        return _begin(RecordKind.FAILURE, self.segment, encode_signature(self.failure), 0, 0)

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "FailureRecord":
        """Decodes a FAILURE.

        Raises:
            struct.error, LookupError, ValueError: The bytes are not a FAILURE of this version.
        """
        segment, _, _, _, failure, _, end = _open_segment(encoded, RecordKind.FAILURE)
        if end != len(encoded):
            raise ValueError(f"a record of {end} bytes in {len(encoded)} bytes")
        return cls(segment, decode_failure(failure))


class _UnitBody(msgspec.Struct, frozen=True, array_like=True):
    segments: tuple[Segment, ...]
    failure: Failure | None = None


_encode_struct = msgspec.msgpack.Encoder().encode
_unit_bodies = msgspec.msgpack.Decoder(_UnitBody)


class UnitRecord(msgspec.Struct, frozen=True):
    """Rows of one or more requests on their way through stages.

    Attributes:
        segments: In the order of their rows; at least one.
        signature: An encoded `Signature`; its inputs are the tensors that later stages or the answer need.
        tensors: Raw bytes of each of these, with the rows of all segments.
        is_whole: Whether the model has no batch axis.
        taken_ms: Unix time at which the first stage took the rows; 0 before.
        ran_ms: Time in the sessions of earlier stages.
        failure: Why all rows failed on the way, in which case there are no tensors.
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
        """Unix time after which no segment is waited for, or `NO_DEADLINE_MS`."""
        deadlines = [segment.deadline_ms for segment in self.segments]
        return NO_DEADLINE_MS if NO_DEADLINE_MS in deadlines else max(deadlines)

    def parts(self) -> list[Buffer]:
        """The record as bytes to be joined."""
        segments = _encode_struct((self.segments, self.failure))
        body_size = _UNIT_TIMES.size + len(segments)
        flags = self.is_whole * _FLAG_WHOLE
        parts = _begin(RecordKind.UNIT, self.segments[0], self.signature, body_size, len(self.tensors), flags)
        parts += (_UNIT_TIMES.pack(self.taken_ms, self.ran_ms), segments)
        append_tensors(parts, self.tensors)
        return parts

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "UnitRecord":
        """Decodes a UNIT.

        Raises:
            struct.error, LookupError, ValueError, msgspec.MsgspecError: The bytes are not a UNIT of this version.
        """
        flags, count, signature, body_at, tensors_at = _open(encoded, RecordKind.UNIT)
        view = memoryview(encoded)
        taken_ms, ran_ms = _UNIT_TIMES.unpack_from(encoded, body_at)
        unit = _unit_bodies.decode(view[body_at + _UNIT_TIMES.size : tensors_at])
        if not unit.segments:
            raise ValueError("a UNIT without segments")
        tensors = read_tensors(view, tensors_at, count)
        return cls(unit.segments, signature, tensors, bool(flags & _FLAG_WHOLE), taken_ms, ran_ms, unit.failure)


class BatchEntry(msgspec.Struct, frozen=True):
    """One request of a BATCH, without its tensors: all that its answer needs.

    Attributes:
        encoding: The encoding of the answer.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        priority: 1 is the most urgent.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer says how the request was run.
        rows: Rows of the batch that are the request's.
        original: The Kafka record's value, for a dead letter.
        read_ms: Unix time at which a task read the request.
        admitted_ms: Unix time at which it was found valid.
    """

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


class BatchRecord(msgspec.Struct, frozen=True):
    """Whole requests that share a batch; the task that runs them answers them.

    Attributes:
        entries: In the order of their rows; at least one.
        signature: An encoded `Signature`.
        tensors: Raw bytes of each input, with the rows of all entries.
    """

    kind: ClassVar[RecordKind] = RecordKind.BATCH

    entries: Sequence[BatchEntry]
    signature: bytes
    tensors: Sequence[Buffer] = ()

    def parts(self) -> list[Buffer]:
        """The record as bytes to be joined."""
        entries = self.entries
        body: list[Buffer] = [b"", *[entry.id.encode() for entry in entries], *[entry.original for entry in entries]]
        packed = [_pack_entry(entry, len(name)) for entry, name in zip(entries, body[1:], strict=False)]
        body[0] = b"".join([_SIZE.pack(len(entries)), *packed])
        first = Segment(entries[0].source)
        parts = _begin(RecordKind.BATCH, first, self.signature, sum(map(len, body)), len(self.tensors))
        parts += body
        append_tensors(parts, self.tensors)
        return parts

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    @classmethod
    def decode(cls, encoded: Buffer) -> "BatchRecord":
        """Decodes a BATCH.

        Raises:
            struct.error, LookupError, ValueError: The bytes are not a BATCH of this version.
        """
        _, count, signature, body_at, tensors_at = _open(encoded, RecordKind.BATCH)
        view = memoryview(encoded)
        tensors = read_tensors(view, tensors_at, count)
        return cls(_read_entries(view[body_at:tensors_at]), signature, tensors)


#: Records that may travel through shared memory.
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
    """Fails on a kind of record without a class of its own.

    Raises:
        NotImplementedError: The table is not complete.
    """
    wrong = [kind.name for kind in RecordKind if kind not in classes or classes[kind].kind is not kind]
    if wrong:
        raise NotImplementedError(f"no class for {', '.join(wrong)}: add it to schemas.records.RECORD_CLASSES")


check_record_classes(RECORD_CLASSES)


def kind_of(encoded: Buffer) -> RecordKind:
    """Returns the kind of an encoded record.

    Raises:
        LookupError: The bytes are not a record.
    """
    return _KINDS[encoded[0]]


def decode_record(encoded: Buffer) -> AnyRecord:
    """Decodes a record of any kind.

    Raises:
        struct.error, LookupError, ValueError, msgspec.MsgspecError: The bytes are not a record of this version.
    """
    return RECORD_CLASSES[kind_of(encoded)].decode(encoded)


def encode_record(record: AnyRecord) -> bytes:
    """The record as bytes."""
    return record.encode()


def head_of(record: ClaimableRecord) -> ClaimableRecord:
    """Returns a record without its large parts: tensors, or the Kafka record's value."""
    return replace(record, original=b"") if isinstance(record, OpeningRecord) else replace(record, tensors=())


def salvage_segments(encoded: Buffer) -> list[Segment]:
    """Returns the segments that can be read in a damaged record, so that their requests hear of it.

    A BATCH has none; see `salvage_entries`. A record of another version yields nothing.
    """
    try:
        fields = _HEADER.unpack_from(encoded)
        kind, version, _, _, id_size, _, signature_size, body_size = fields[:8]
        if kind not in _KINDS or kind == RecordKind.BATCH or version != VERSION:
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
    """Returns as much of a damaged OPENING as its answer needs; None if the bytes are not one."""
    segments = salvage_segments(encoded)
    if not segments or encoded[0] != RecordKind.OPENING:
        return None
    encoding = _ENCODINGS.get(encoded[3], Encoding.PROTOBUF)
    return OpeningRecord(segments[0], encode_signature(UNKNOWN_SIGNATURE), encoding)


def salvage_entries(encoded: Buffer) -> list[BatchEntry]:
    """Returns the entries that can be read in a damaged BATCH; an id or Kafka value that is cut short is empty."""
    try:
        fields = _HEADER.unpack_from(encoded)
        if fields[0] != RecordKind.BATCH or fields[1] != VERSION:
            return []
        return _read_entries(memoryview(encoded)[_HEADER.size + fields[4] + fields[6] :], damaged=True)
    except (struct.error, LookupError):
        return []


def _sizes(count: int) -> struct.Struct:
    return _SIZES[count] if count < len(_SIZES) else struct.Struct(f"<{count}I")


def append_tensors(parts: list[Buffer], tensors: Sequence[Buffer]) -> None:
    """Ends the parts of a record with its tensors: their sizes, then each on a 16-byte boundary of the record."""
    parts.append(_sizes(len(tensors)).pack(*map(len, tensors)))
    size_bytes = sum(map(len, parts))
    for tensor in tensors:
        padding = -size_bytes % TENSOR_ALIGNMENT_BYTES
        parts += (_PADDING[padding], tensor)
        size_bytes += padding + len(tensor)


def read_tensors(view: memoryview, at: int, count: int) -> tuple[memoryview, ...]:
    """Returns the tensors that `append_tensors` wrote, as views.

    Args:
        view: The whole record.
        at: Offset of the first size.

    Raises:
        struct.error, ValueError: The last tensor does not end with the record.
    """
    tensors = []
    sizes = _sizes(count).unpack_from(view, at)
    at += _SIZE.size * count
    for size in sizes:
        at += -at % TENSOR_ALIGNMENT_BYTES
        end = at + size
        tensors.append(view[at:end])
        at = end
    if at != len(view):
        raise ValueError(f"a record of {at} bytes in {len(view)} bytes")
    return tuple(tensors)


def _begin(
    kind: int,
    segment: Segment,
    signature: bytes,
    body_size: int,
    tensor_count: int,
    flags: int = 0,
    encoding: int = 0,
) -> list[Buffer]:
    """The header with id and signature: the only place that packs one."""
    request_id = segment.id.encode()
    source = segment.source
    header = _HEADER.pack(
        kind,
        VERSION,
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
    """Returns flags, number of tensors, signature, and the offsets of body and tensors.

    Raises:
        struct.error, ValueError: The record is cut short, or of another kind or version.
    """
    kind, version, flags, _, id_size, tensor_count, signature_size, body_size = _PREFIX.unpack_from(encoded)
    if kind != wanted or version != VERSION:
        raise _unexpected(kind, version, wanted)
    signature_at = _HEADER.size + id_size
    body_at = signature_at + signature_size
    return flags, tensor_count, bytes(encoded[signature_at:body_at]), body_at, body_at + body_size


def _open_segment(encoded: Buffer, wanted: int) -> tuple[Segment, int, int, int, bytes, int, int]:
    """Returns segment and encoding besides flags, number of tensors, signature and offsets as `_open` does.

    One function instead of two calls: it runs for each record of a window.
    """
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
    if kind != wanted or version != VERSION:
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


def _read_entries(body: memoryview, *, damaged: bool = False) -> list[BatchEntry]:
    """The entries of a BATCH.

    Args:
        damaged: Whether to read as many entries as there are, with empty ids and values where these are cut short.
    """
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
    if not damaged and (not entries or originals_at != len(body)):
        raise ValueError(f"{len(entries)} entries of {originals_at} bytes in a body of {len(body)} bytes")
    return entries
