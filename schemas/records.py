"""The records that travel between operators: a fixed header, then raw bytes.

    +--------+----+-----------+-------+---------+----------+-------------------+
    | header | id | signature | spans | padding | original | tensors           |
    +--------+----+-----------+-------+---------+----------+-------------------+
                                                ^ body: spans are relative to it

`spans` says where each tensor's raw bytes are in the body. A request in protobuf with raw contents has its tensors
inside `original`, the record as it came from Kafka, so that nothing is copied to describe it; other forms append what
was decoded. The padding puts the first tensor on a 16-byte boundary, where numpy and ONNX Runtime use it in place.

The same layout serves every kind (see `Kind`); the golden files of `tests/schemas` hold it byte for byte.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from schemas.messages import Form
from schemas.tensors import Buffer

ALIGNMENT_BYTES = 16
NO_DEADLINE_MS = 0
MAX_FAILURE_LENGTH = 2000


class Kind(IntEnum):
    """What a record is, in its first byte."""

    #: admit -> shard: one valid request.
    REQUEST = 1
    #: admit -> shard -> infer: one refused request, on its way to its answer.
    REJECTION = 2
    #: shard -> infer: requests that share one batch, one after the other.
    UNIT = 3
    #: shard -> infer, over the exchange: some rows of one big request.
    SHARD = 4
    #: shard -> aggregate: a big request's window opens.
    OPENING = 5
    #: infer -> aggregate: the outputs of a shard.
    PARTIAL = 6
    #: infer -> aggregate: rows of a shard on which the model failed.
    FAILURE = 7


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
        code: One of `schemas.errors`.
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


# Calling an enum class costs ten times a look-up.
_KINDS = {kind.value: kind for kind in Kind}
_FORMS = {form.value: form for form in Form}

# kind, form, flags, padding, size, id's size, tensors, signature's size, first row, rows, total rows, partition,
# priority, offset, timestamp, deadline, original's size
_HEADER = struct.Struct("<BBBBIHHIIIIiiqqqI")
_SPAN = struct.Struct("<II")
_UNIT_HEADER = struct.Struct("<BxxxI8x")
_FLAG_PARTIAL_ALLOWED = 1
_FLAG_EXPLAIN = 2


class Record(msgspec.Struct, frozen=True):
    """One record between two operators; see `Kind` for which.

    Attributes:
        source: The request's place in Kafka.
        id: The request's id.
        form: The form to answer in.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        priority: As the request says: 0 = default, 1 = highest.
        signature: An encoded `Signature`; for a PARTIAL an `OutputSignature`; for a REJECTION or FAILURE a `Failure`.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer is to say over how many shards and tasks it was spread.
        first_row: The request's row that is row 0 here.
        rows: Rows here (1 for a model without batch axis).
        total_rows: Rows of the whole request.
        original: The Kafka record's value, where it travels along.
        tensors: Raw bytes of each input (or output), in the signature's order.
    """

    kind: Kind
    source: Source
    signature: bytes
    id: str = ""
    form: Form = Form.PROTOBUF
    deadline_ms: int = NO_DEADLINE_MS
    priority: int = 0
    partial_allowed: bool = False
    explain: bool = False
    first_row: int = 0
    rows: int = 1
    total_rows: int = 1
    original: Buffer = b""
    tensors: tuple[Buffer, ...] = ()

    def encode(self) -> bytes:
        """The record as bytes, its tensors appended to the original."""
        spans, end = [], len(self.original)
        for tensor in self.tensors:
            start = end + -end % ALIGNMENT_BYTES
            end = start + len(tensor)
            spans.append((start, len(tensor)))
        return self._encode(spans, self.tensors)

    def encode_in_place(self, spans: Sequence[tuple[int, int]]) -> bytes:
        """The record as bytes, its tensors being parts of the original: (offset, length) of each."""
        return self._encode(spans, ())

    def _encode(self, spans: Sequence[tuple[int, int]], appended: Iterable[Buffer]) -> bytes:
        request_id = self.id.encode()
        head_size = _HEADER.size + len(request_id) + len(self.signature) + _SPAN.size * len(spans)
        padding = -(head_size + (spans[0][0] if spans else 0)) % ALIGNMENT_BYTES
        parts: list[Buffer] = [request_id, self.signature]
        parts += [_SPAN.pack(*span) for span in spans]
        parts += (bytes(padding), self.original)
        end = len(self.original)
        for (start, size), tensor in zip(spans, appended, strict=False):
            parts += (bytes(start - end), tensor)
            end = start + size
        source = self.source
        header = _HEADER.pack(
            self.kind,
            self.form,
            self.partial_allowed * _FLAG_PARTIAL_ALLOWED | self.explain * _FLAG_EXPLAIN,
            padding,
            head_size + padding + end,
            len(request_id),
            len(spans),
            len(self.signature),
            self.first_row,
            self.rows,
            self.total_rows,
            source.partition,
            self.priority,
            source.offset,
            source.timestamp_ms,
            self.deadline_ms,
            len(self.original),
        )
        return b"".join([header, *parts])

    @classmethod
    def decode(cls, encoded: Buffer, at: int = 0) -> "Record":
        """The record that starts at a byte; its original and tensors are views into `encoded`."""
        view = memoryview(encoded)
        (
            kind,
            form,
            flags,
            padding,
            _,
            id_size,
            tensor_count,
            signature_size,
            first_row,
            rows,
            total_rows,
            partition,
            priority,
            offset,
            timestamp_ms,
            deadline_ms,
            original_size,
        ) = _HEADER.unpack_from(view, at)
        at += _HEADER.size
        request_id = str(view[at : at + id_size], "utf-8")
        at += id_size
        signature = bytes(view[at : at + signature_size])
        at += signature_size
        body = at + _SPAN.size * tensor_count + padding
        tensors = []
        for _ in range(tensor_count):
            start, size = _SPAN.unpack_from(view, at)
            tensors.append(view[body + start : body + start + size])
            at += _SPAN.size
        return cls(
            _KINDS[kind],
            Source(partition, offset, timestamp_ms),
            signature,
            request_id,
            _FORMS[form],
            deadline_ms,
            priority,
            bool(flags & _FLAG_PARTIAL_ALLOWED),
            bool(flags & _FLAG_EXPLAIN),
            first_row,
            rows,
            total_rows,
            view[body : body + original_size],
            tuple(tensors),
        )


def kind_of(encoded: Buffer) -> Kind:
    """What an encoded record is, without decoding it."""
    return _KINDS[encoded[0]]


class Head(NamedTuple):
    """What can be said of an encoded record at a glance."""

    signature: bytes
    rows: int
    priority: int
    deadline_ms: int


def peek(encoded: Buffer) -> Head:
    """The head of a record, without decoding the rest."""
    header = _HEADER.unpack_from(encoded)
    at = _HEADER.size + header[5]
    return Head(bytes(encoded[at : at + header[7]]), header[9], header[12], header[15])


def join_records(records: Iterable[Buffer]) -> bytes:
    """Encoded records as one frame, each of them on a boundary."""
    parts: list[Buffer] = []
    for record in records:
        parts += (record, _PADDING[-len(record) % ALIGNMENT_BYTES])
    return b"".join(parts)


def split_records(frame: Buffer) -> list[memoryview]:
    """The encoded records of a frame, as views into it.

    Raises:
        struct.error, ValueError: It is no frame of `join_records`.
    """
    view = memoryview(frame)
    at, end, records = 0, len(view), []
    while at < end:
        size = _SIZE.unpack_from(view, at + _SIZE_AT)[0]
        if not 0 < size <= end - at:
            raise ValueError(f"a record of {size} bytes at {at} in a frame of {end} bytes")
        records.append(view[at : at + size])
        at += size + -size % ALIGNMENT_BYTES
    return records


def encode_unit(requests: Sequence[Buffer]) -> bytes:
    """Encoded requests of one signature as one unit."""
    return _UNIT_HEADER.pack(Kind.UNIT, len(requests)) + join_records(requests)


def decode_unit(encoded: Buffer) -> list[Record]:
    """The requests of a unit, as views into it."""
    view = memoryview(encoded)
    count = _UNIT_HEADER.unpack_from(view)[1]
    at, records = _UNIT_HEADER.size, []
    for _ in range(count):
        records.append(Record.decode(view, at))
        size = _SIZE.unpack_from(view, at + _SIZE_AT)[0]
        at += size + -size % ALIGNMENT_BYTES
    return records


_PADDING = tuple(bytes(size) for size in range(ALIGNMENT_BYTES))
_SIZE = struct.Struct("<I")
_SIZE_AT = 4
_encode_struct = msgspec.msgpack.Encoder().encode
_signatures = msgspec.msgpack.Decoder(Signature)
_output_signatures = msgspec.msgpack.Decoder(OutputSignature)
_failures = msgspec.msgpack.Decoder(Failure)


def encode_signature(signature: Signature | OutputSignature | Failure) -> bytes:
    """What goes into `Record.signature`; equal values give equal bytes."""
    return _encode_struct(signature)


@lru_cache(maxsize=4096)
def decode_signature(encoded: bytes) -> Signature:
    """The signature of a REQUEST, SHARD or OPENING."""
    return _signatures.decode(encoded)


@lru_cache(maxsize=4096)
def decode_output_signature(encoded: bytes) -> OutputSignature:
    """The signature of a PARTIAL."""
    return _output_signatures.decode(encoded)


def decode_failure(encoded: bytes) -> Failure:
    """The signature of a REJECTION or FAILURE."""
    return _failures.decode(encoded)
