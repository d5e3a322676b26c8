"""How a record travels to its next task: as a message, or, between processes of one host, as a claim check.

    message   the record                                     its first byte is its `RecordKind`
    claim     255 | where the record lies | the head          the head: the record without what is large

A small record is cheaper as a message. What cannot be had at the other end becomes a FAILURE of its rows; but an
OPENING says whom to answer, so it only comes without the original.
"""

import struct
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from anabranch.schemas.errors import ExchangeFailed
from anabranch.schemas.limits import MAX_MESSAGE_BYTES
from anabranch.schemas.records import Failure, Record, RecordKind, decode_signature, encode_signature

STAGE = "exchange"

_MARK = 255
_MARK_BYTE = bytes((_MARK,))
# mark, attempt, process, file, host, arena, slot, sequence, offset, size
_CLAIM = struct.Struct("<B3xIII16s16sIQQQ")


class TransportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the tasks of one job exchange records.

    Attributes:
        job: Of this job alone, and the same for all of its tasks: what they know each other by.
        shares_memory: Whether claims may be used where all tasks are on one host.
        claim_from_bytes: Smaller records are messages.
        arena_bytes: What a task may hold in shared memory for the readers of one operator; beyond it, messages.
    """

    job: str = ""
    shares_memory: bool = False
    claim_from_bytes: int = 0
    arena_bytes: int = 0

    def is_claimable(self, size_bytes: int) -> bool:
        """Whether a record is one for shared memory, if its readers are on this host."""
        return self.shares_memory and size_bytes >= self.claim_from_bytes


class Claim(NamedTuple):
    """Where a record lies.

    Attributes:
        attempt: Of the job: Flink starts a new one after each failure.
        process: Its id on the host.
        file: The arena's descriptor in that process.
        host: See `anabranch.operators.transport.memfd_arena`.
        arena: The arena's name; unique.
        slot: The byte of the arena in which the reader says that it is done.
        sequence: The record's number in its arena.
    """

    attempt: int
    process: int
    file: int
    host: bytes
    arena: bytes
    slot: int
    sequence: int
    offset: int
    size_bytes: int

    def encode(self, record: Record) -> bytes:
        """What travels instead of the record."""
        # Without its members, nobody could be told of a UNIT that is lost.
        original = record.original if record.kind is RecordKind.UNIT else b""
        return _CLAIM.pack(_MARK, *self) + replace(record, tensors=(), original=original).encode()


def is_claim(message: bytes) -> bool:
    """Whether a message only says where the record lies."""
    return message[:1] == _MARK_BYTE


def decode_claim(message: bytes) -> tuple[Claim, Record]:
    """A claim, and the head of its record.

    Raises:
        struct.error, LookupError, ValueError: It is none.
    """
    _, *fields = _CLAIM.unpack_from(message)
    return Claim(*fields), Record.decode(memoryview(message)[_CLAIM.size :])


def lost(head: Record) -> Record:
    """What is left of a record that cannot be had: a FAILURE, so that its request is answered, and may be sent again.

    Of an OPENING it is all but the original, which only a dead letter needs.
    """
    if head.kind is RecordKind.OPENING:
        return head
    message = "a part of the request lies in the memory of another host; send it again, or set exchange.transport"
    return _failed(head, f"{message} to 'messages'")


def too_large(record: Record, size_bytes: int) -> Record:
    """What is left of a record of more than `MAX_MESSAGE_BYTES` that has no room in shared memory; as in `lost`."""
    if record.kind is RecordKind.OPENING:
        return replace(record, original=b"")
    message = f"a part of the request has {size_bytes} bytes on its way to another task"
    message += f"; the most is {MAX_MESSAGE_BYTES}: send fewer rows at a time"
    return _failed(replace(record, tensors=()), message)


def _failed(head: Record, message: str) -> Record:
    names = ("", "")
    if head.kind in (RecordKind.SHARD, RecordKind.UNIT):
        signature = decode_signature(head.signature)
        names = (signature.model_name, signature.model_version)
    failure = Failure(ExchangeFailed.code, message, STAGE, *names)
    return replace(head, kind=RecordKind.FAILURE, signature=encode_signature(failure), times_ms=())
