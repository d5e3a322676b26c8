"""The records that travel between tasks: a fixed header, then raw bytes.

    +--------+----+-----------+-------+----------+--------------+---------+--------+---------+--------+
    | header | id | signature | times | original | tensor sizes | padding | tensor | padding | tensor |
    +--------+----+-----------+-------+----------+--------------+---------+--------+---------+--------+

The padding puts every tensor on a 16-byte boundary, where numpy and ONNX Runtime use it in place.

The same layout serves every kind (see `RecordKind`) but the BATCH (`batches`); the golden files of `tests/schemas`
hold it byte for byte.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

import msgspec

from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_FAILURE_LENGTH, TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.messages import Encoding
from anabranch.schemas.model import Ensemble
from anabranch.schemas.tensors import Buffer

NO_DEADLINE_MS = 0


class RecordKind(IntEnum):
    """What a record is, in its first byte."""

    #: shard -> infer: some rows of one big request.
    SHARD = 1
    #: shard -> aggregate: a big request's window opens.
    OPENING = 2
    #: infer, last stage -> aggregate: the outputs of some rows.
    PARTIAL = 3
    #: infer, stage -> aggregate: rows that failed. Also what any but an OPENING becomes if it cannot be had.
    FAILURE = 4
    #: serve -> stage -> stage: rows of one or more requests on their way through a model that is cut.
    UNIT = 5
    #: serve -> infer: requests that share a batch, whole; see `anabranch.schemas.batches`.
    BATCH = 6


class TensorSignature(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a batch: everything but its rows.

    Attributes:
        shape: Every axis; where the model has a batch axis, every axis but that one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """What requests must share to share a batch; its encoding is compared byte for byte.

    Attributes:
        inputs: In the model's order.
        outputs: The outputs that were asked for, in order; all of the model's where none was named.
    """

    model_name: str
    model_version: str
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[str, ...]


class OpeningSignature(Signature, frozen=True, array_like=True):
    """The signature of an OPENING: read as a `Signature`, it is just that.

    Attributes:
        ensemble: Whose window opens; None for a plain model's.
    """

    ensemble: Ensemble | None = None


class OutputSignature(msgspec.Struct, frozen=True, array_like=True):
    """What a PARTIAL holds.

    Attributes:
        task: Which inference task ran it.
        outputs: In the order that the request asked for; the rows are in the record's header.
    """

    task: int
    outputs: tuple[TensorSignature, ...]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a request, or some of its rows, failed.

    Attributes:
        code: One of `anabranch.schemas.errors`.
        message: Cut where it is long: names that a sender made up, or a model's own words, may have any length, but
            an error must always fit into a record.
        stage: The operator in which it failed.
    """

    code: str
    message: str
    stage: str
    model_name: str = ""
    model_version: str = ""

    def __post_init__(self) -> None:
        message = self.message
        if len(message) > MAX_FAILURE_LENGTH:
            message = message[: MAX_FAILURE_LENGTH - 1] + "…"
        msgspec.structs.force_setattr(self, "message", message.encode(errors="backslashreplace").decode())


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a request came from; unique, and the same again after a replay.

    Attributes:
        timestamp_ms: The Kafka record's timestamp.
    """

    partition: int
    offset: int
    timestamp_ms: int


class UnitSegment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some rows of one request in a UNIT, whose rows follow those of the member before.

    Attributes:
        partition: With the next two, the request's `Source`.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        first_row: The request's row that is the member's row 0.
    """

    partition: int
    offset: int
    timestamp_ms: int
    id: str
    deadline_ms: int
    first_row: int
    rows: int
    total_rows: int


# Calling an enum class costs ten times a look-up.
_KINDS = {kind.value: kind for kind in RecordKind}
_FORMS = {encoding.value: encoding for encoding in Encoding}

# kind, form, flags, times, id's size, tensors, signature's size, first row, rows, total rows, partition, rank, offset,
# timestamp, deadline, original's size
_HEADER = struct.Struct("<BBBBHHIIIIiiqqqI")
_SIZE = struct.Struct("<I")
_TIMES = tuple(struct.Struct(f"<{count}d") for count in range(4))
_PADDING = tuple(bytes(size) for size in range(TENSOR_ALIGNMENT_BYTES))
_FLAG_PARTIAL_ALLOWED = 1
_FLAG_EXPLAIN = 2
_FLAG_WHOLE = 4


class Record(msgspec.Struct, frozen=True):
    """One record between two tasks; see `RecordKind` for which.

    Attributes:
        source: The request's place in Kafka; of a UNIT, its first member's.
        id: The request's id.
        form: The form to answer in.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`; of a UNIT, when the last of its members does not wait any more.
        rank: The request's place in line: 1 is first.
        signature: An encoded `Signature`; for a PARTIAL an `OutputSignature`; for a FAILURE a `Failure`. The inputs of
            a UNIT's are what travels: all that later stages need, and outputs that are there already.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer is to say over how many shards and tasks it was spread.
        first_row: The request's row that is row 0 here. The members of an ensemble count on: row r of the m-th is
            m * total_rows + r.
        rows: Rows here (1 for a model without batch axis).
        total_rows: Rows of the whole request.
        original: The Kafka record's value, where it travels along; of a UNIT, its encoded members.
        tensors: Raw bytes of each input (or output), in the signature's order.
        times_ms: Unix time (`latency_breakdown`): of an OPENING when it was read and admitted, of a PARTIAL when its
            shard was taken, started and ended, of a UNIT when it was taken; and how long it ran. At most three.
        is_whole: Whether the model has no batch axis, so that the signature of a PARTIAL or UNIT has all axes.
    """

    kind: RecordKind
    source: Source
    signature: bytes
    id: str = ""
    encoding: Encoding = Encoding.PROTOBUF
    deadline_ms: int = NO_DEADLINE_MS
    rank: int = 0
    partial_allowed: bool = False
    explain: bool = False
    first_row: int = 0
    rows: int = 1
    total_rows: int = 1
    original: Buffer = b""
    tensors: tuple[Buffer, ...] = ()
    times_ms: tuple[float, ...] = ()
    is_whole: bool = False

    def encode(self) -> bytes:
        """The record as bytes."""
        return b"".join(self.parts())

    def parts(self) -> list[Buffer]:
        """The record as bytes, not joined yet."""
        request_id = self.id.encode()
        source = self.source
        header = _HEADER.pack(
            self.kind,
            self.encoding,
            self.partial_allowed * _FLAG_PARTIAL_ALLOWED | self.explain * _FLAG_EXPLAIN | self.is_whole * _FLAG_WHOLE,
            len(self.times_ms),
            len(request_id),
            len(self.tensors),
            len(self.signature),
            self.first_row,
            self.rows,
            self.total_rows,
            source.partition,
            self.rank,
            source.offset,
            source.timestamp_ms,
            self.deadline_ms,
            len(self.original),
        )
        times = _TIMES[len(self.times_ms)].pack(*self.times_ms)
        parts: list[Buffer] = [header, request_id, self.signature, times, self.original]
        append_tensors(parts, self.tensors)
        return parts

    @classmethod
    def decode(cls, encoded: Buffer) -> "Record":
        """A record from its bytes; its original and tensors are views into them.

        Raises:
            struct.error, LookupError, ValueError: It is none.
        """
        view = memoryview(encoded)
        (
            kind,
            encoding,
            flags,
            time_count,
            id_size,
            tensor_count,
            signature_size,
            first_row,
            rows,
            total_rows,
            partition,
            rank,
            offset,
            timestamp_ms,
            deadline_ms,
            original_size,
        ) = _HEADER.unpack_from(view)
        at = _HEADER.size
        request_id = str(view[at : at + id_size], "utf-8")
        at += id_size
        signature = bytes(view[at : at + signature_size])
        at += signature_size
        times_ms = _TIMES[time_count].unpack_from(view, at)
        at += _TIMES[time_count].size
        original = view[at : at + original_size]
        tensors = read_tensors(view, at + original_size, tensor_count)
        return cls(
            _KINDS[kind],
            Source(partition, offset, timestamp_ms),
            signature,
            request_id,
            _FORMS[encoding],
            deadline_ms,
            rank,
            bool(flags & _FLAG_PARTIAL_ALLOWED),
            bool(flags & _FLAG_EXPLAIN),
            first_row,
            rows,
            total_rows,
            original,
            tuple(tensors),
            times_ms,
            bool(flags & _FLAG_WHOLE),
        )


def append_tensors(parts: list[Buffer], tensors: Sequence[Buffer]) -> None:
    """Ends the parts of a record with its tensors: their sizes, then each on a 16-byte boundary of the record."""
    parts.append(b"".join([_SIZE.pack(len(tensor)) for tensor in tensors]))
    size_bytes = sum(map(len, parts))
    for tensor in tensors:
        padding = -size_bytes % TENSOR_ALIGNMENT_BYTES
        parts += (_PADDING[padding], tensor)
        size_bytes += padding + len(tensor)


def read_tensors(view: memoryview, at: int, count: int) -> list[memoryview]:
    """The tensors that `append_tensors` wrote, as views.

    Args:
        view: The whole record.
        at: Where the first size is.

    Raises:
        struct.error, ValueError: They do not end where the record does.
    """
    tensors, sizes_at = [], at
    at += _SIZE.size * count
    for index in range(count):
        at += -at % TENSOR_ALIGNMENT_BYTES
        (size,) = _SIZE.unpack_from(view, sizes_at + _SIZE.size * index)
        tensors.append(view[at : at + size])
        at += size
    if at != len(view):
        raise ValueError(f"a record of {at} bytes in {len(view)}")
    return tensors


def kind_of(encoded: Buffer) -> RecordKind:
    """What an encoded record is, without decoding it."""
    return _KINDS[encoded[0]]


_encode_struct = msgspec.msgpack.Encoder().encode
_signatures = msgspec.msgpack.Decoder(Signature)
_opening_signatures = msgspec.msgpack.Decoder(OpeningSignature)
_output_signatures = msgspec.msgpack.Decoder(OutputSignature)
_failures = msgspec.msgpack.Decoder(Failure)
_members = msgspec.msgpack.Decoder(tuple[UnitSegment, ...])


def encode_signature(signature: Signature | OutputSignature | Failure) -> bytes:
    """What goes into `Record.signature`; equal values give equal bytes."""
    return _encode_struct(signature)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_signature(encoded: bytes) -> Signature:
    """The signature of a request, SHARD or OPENING."""
    return _signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_opening_signature(encoded: bytes) -> OpeningSignature:
    """The signature of an OPENING, with the ensemble whose window it opens."""
    return _opening_signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_output_signature(encoded: bytes) -> OutputSignature:
    """The signature of a PARTIAL."""
    return _output_signatures.decode(encoded)


def decode_failure(encoded: bytes) -> Failure:
    """The signature of a FAILURE."""
    return _failures.decode(encoded)


def encode_segments(members: Sequence[UnitSegment]) -> bytes:
    """What goes into the `Record.original` of a UNIT."""
    return _encode_struct(members)


def decode_segments(encoded: Buffer) -> tuple[UnitSegment, ...]:
    """The members of a UNIT, in the order of their rows."""
    return _members.decode(encoded)
