"""A BATCH: requests of one signature that travel to another task together, to be run there as one batch.

    +--------+-----------+---------+---------+-----+-----------+--------------+---------+--------+---------+--------+
    | header | signature | members | ids     | originals       | tensor sizes | padding | tensor | padding | tensor |
    +--------+-----------+---------+---------+-----+-----------+--------------+---------+--------+---------+--------+

A member is all that its request's answer needs, its original for a dead letter too: whoever has run it last answers it,
and no window is opened. Each tensor holds the rows of all members, in their order, on a 16-byte boundary: they run as
they came.
"""

import struct
from collections.abc import Sequence

import msgspec

from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import NO_DEADLINE_MS, RecordKind, Source, append_tensors, read_tensors
from anabranch.schemas.tensors import Buffer

_FORMS = {encoding.value: encoding for encoding in Encoding}
# kind, tensors, signature's size, members
_HEADER = struct.Struct("<BxHII")
# form, flags, id's size, rows, original's size, partition, rank, offset, timestamp, deadline, read, admitted
_MEMBER = struct.Struct("<BBHIIiiqqqdd")
_FLAG_PARTIAL_ALLOWED = 1
_FLAG_EXPLAIN = 2


class BatchEntry(msgspec.Struct, frozen=True):
    """One request of a batch, but for its tensors.

    Attributes:
        source: The request's place in Kafka.
        id: The request's id.
        form: The form to answer in.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        rank: The request's place in line: 1 is first.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer is to say how the request was run.
        rows: How many of the batch's are the request's (1 for a model without batch axis).
        original: The Kafka record's value.
        read_ms: When a task read it, in Unix time.
        admitted_ms: When it was found valid.
    """

    source: Source
    id: str = ""
    encoding: Encoding = Encoding.PROTOBUF
    deadline_ms: int = NO_DEADLINE_MS
    rank: int = 0
    partial_allowed: bool = False
    explain: bool = False
    rows: int = 1
    original: Buffer = b""
    read_ms: float = 0.0
    admitted_ms: float = 0.0


class BatchRecord(msgspec.Struct, frozen=True):
    """One batch on its way.

    Attributes:
        signature: Of all members; an encoded `anabranch.schemas.records.Signature`.
        members: In the order of their rows.
        tensors: Raw bytes of each input, in the signature's order.
    """

    signature: bytes
    members: Sequence[BatchEntry]
    tensors: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        """The batch as bytes."""
        ids = [member.id.encode() for member in self.members]
        parts: list[Buffer] = [
            _HEADER.pack(RecordKind.BATCH, len(self.tensors), len(self.signature), len(self.members)),
            self.signature,
            *[_packed(member, len(name)) for member, name in zip(self.members, ids, strict=True)],
            *ids,
            *[member.original for member in self.members],
        ]
        append_tensors(parts, self.tensors)
        return b"".join(parts)

    @classmethod
    def decode(cls, encoded: Buffer) -> "BatchRecord":
        """A batch from its bytes; originals and tensors are views into them.

        Raises:
            struct.error, LookupError, ValueError: It is none.
        """
        view = memoryview(encoded)
        kind, tensor_count, signature_size, member_count = _HEADER.unpack_from(view)
        if kind != RecordKind.BATCH:
            raise ValueError(f"a record of kind {kind} is no batch")
        members_at = _HEADER.size + signature_size
        ids_at = members_at + _MEMBER.size * member_count
        packed = list(_MEMBER.iter_unpack(view[members_at:ids_at]))
        if len(packed) != member_count:
            raise ValueError(f"a batch of {member_count} members in {len(view)} bytes")
        originals_at = ids_at + sum([fields[2] for fields in packed])
        members, at = [], originals_at
        for (
            encoding,
            flags,
            id_size,
            rows,
            size,
            partition,
            rank,
            offset,
            timestamp_ms,
            deadline_ms,
            *times_ms,
        ) in packed:
            members.append(
                BatchEntry(
                    Source(partition, offset, timestamp_ms),
                    str(view[ids_at : ids_at + id_size], "utf-8"),
                    _FORMS[encoding],
                    deadline_ms,
                    rank,
                    bool(flags & _FLAG_PARTIAL_ALLOWED),
                    bool(flags & _FLAG_EXPLAIN),
                    rows,
                    view[at : at + size],
                    *times_ms,
                )
            )
            ids_at += id_size
            at += size
        return cls(bytes(view[_HEADER.size : members_at]), members, read_tensors(view, at, tensor_count))


def _packed(member: BatchEntry, id_size: int) -> bytes:
    source = member.source
    return _MEMBER.pack(
        member.encoding,
        member.partial_allowed * _FLAG_PARTIAL_ALLOWED | member.explain * _FLAG_EXPLAIN,
        id_size,
        member.rows,
        len(member.original),
        source.partition,
        member.rank,
        source.offset,
        source.timestamp_ms,
        member.deadline_ms,
        member.read_ms,
        member.admitted_ms,
    )
