"""Decides whether a record travels as a message or as a claim check to shared memory.

    message   the record; its first byte is its `RecordKind`
    claim     255 | place of the record | head: the record without its large parts

An unreadable record becomes a FAILURE or a failed UNIT. An OPENING only loses its original.
"""

import struct
from typing import NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

from anabranch.schemas.errors import ExchangeFailed
from anabranch.schemas.limits import MAX_MESSAGE_BYTES
from anabranch.schemas.records import (
    AnyRecord,
    ClaimableRecord,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    ShardRecord,
    UnitRecord,
    decode_record,
    head_of,
)
from anabranch.schemas.signatures import Failure, decode_signature
from anabranch.schemas.tensors import Buffer

PHASE = "exchange"

_MARK = 255
_MARK_BYTE = bytes((_MARK,))
# mark, attempt, process, file, host, arena, slot, sequence, offset, size
_CLAIM = struct.Struct("<B3xIII16s16sIQQQ")


class TransportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Exchange of records between the tasks of one job, which has a unique name.

    Attributes:
        shares_memory: True to allow claims on one host.
        claim_from_bytes: Smaller records are messages.
        arena_bytes: Shared memory of a task for the readers of one operator.
        has_credits: True if records carry tickets.
    """

    job: str = ""
    shares_memory: bool = False
    claim_from_bytes: int = 0
    arena_bytes: int = 0
    has_credits: bool = False

    def is_claimable(self, size_bytes: int) -> bool:
        """Return True if a record may use shared memory."""
        return self.shares_memory and size_bytes >= self.claim_from_bytes


class Claim(NamedTuple):
    """Place of a record in shared memory.

    Attributes:
        process: Process id on the host.
        file: Descriptor of the arena in that process.
        slot: Byte in which the reader reports that it is done.
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

    def encode(self, record: ClaimableRecord) -> bytes:
        """Encode the message that replaces the record."""
        return _CLAIM.pack(_MARK, *self) + head_of(record).encode()


def is_claim(message: Buffer) -> bool:
    """Return True for a claim, False for a record."""
    return message[:1] == _MARK_BYTE


def decode_claim(message: Buffer) -> tuple[Claim, ClaimableRecord]:
    """Decode a claim and the head of its record.

    Raises:
        struct.error, LookupError, ValueError: The bytes are not a claim.
    """
    _, *fields = _CLAIM.unpack_from(message)
    head = decode_record(memoryview(message)[_CLAIM.size :])
    if not isinstance(head, ClaimableRecord):
        raise ValueError(f"a claim of a {head.kind.name}, which does not travel through shared memory")  # noqa: TRY004 - bytes
    return Claim(*fields), head


def lost(head: ClaimableRecord) -> AnyRecord:
    """Replace a record with unreadable memory by a failure of its rows."""
    return _failed(
        head,
        "a part of the request is stored in the memory of another host: send it again, or set exchange.transport "
        "to 'messages'",
    )


def too_large(record: ClaimableRecord, size_bytes: int) -> AnyRecord:
    """Replace a record beyond all limits by a failure of its rows."""
    return _failed(
        record,
        f"a part of the request has {size_bytes} bytes between two tasks, at most {MAX_MESSAGE_BYTES} are allowed: "
        "send fewer rows at a time",
    )


def _failed(record: ClaimableRecord, message: str) -> AnyRecord:
    if isinstance(record, OpeningRecord):
        return head_of(record)
    if isinstance(record, PartialRecord):
        return FailureRecord(record.segment, Failure(ExchangeFailed.code, message, PHASE))
    signature = decode_signature(record.signature)
    failure = Failure(ExchangeFailed.code, message, PHASE, signature.model_name, signature.model_version)
    if isinstance(record, ShardRecord):
        return FailureRecord(record.segment, failure)
    if isinstance(record, UnitRecord):
        return replace(record, tensors=(), failure=failure)
    assert_never(record)
