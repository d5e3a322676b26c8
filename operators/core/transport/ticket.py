"""Tickets of records, which the last reader returns.

    254, reader, sender's address, target, number, durations | record or claim check

`ReaderPartitioner.java` reads the reader.
"""

import struct
from typing import NamedTuple

from anabranch.schemas.tensors import Buffer

_MARK = 254
_MARK_BYTE = bytes((_MARK,))
_HEAD = struct.Struct("<B3xi8s4sHHIff12x")
_RETURN = struct.Struct("<8siHIff")
RETURN_BYTES = _RETURN.size


class Ticket(NamedTuple):
    """A ticket; `token` names the sender's attempt, `target` the readers' operator."""

    reader: int
    token: bytes
    host: bytes
    port: int
    target: int
    number: int
    ran_ms: float = 0.0
    longest_ms: float = 0.0

    def encode(self) -> bytes:
        """Encode it."""
        return _HEAD.pack(_MARK, *self)

    def after(self, ran_ms: float) -> "Ticket":
        """Return the ticket after a run."""
        return self._replace(ran_ms=self.ran_ms + ran_ms, longest_ms=max(self.longest_ms, ran_ms))

    def encode_return(self) -> bytes:
        """Encode the returning datagram."""
        return _RETURN.pack(self.token, self.reader, self.target, self.number, self.ran_ms, self.longest_ms)


class ReturnedTicket(NamedTuple):
    """A returned ticket."""

    token: bytes
    reader: int
    target: int
    number: int
    ran_ms: float
    longest_ms: float


def has_ticket(message: bytes) -> bool:
    """Look for a ticket."""
    return message[:1] == _MARK_BYTE


def open_ticket(message: bytes) -> tuple[Ticket, Buffer]:
    """Split a message."""
    return Ticket._make(_HEAD.unpack_from(message)[1:]), memoryview(message)[_HEAD.size :]


def decode_return(datagram: bytes) -> ReturnedTicket:
    """Decode a datagram, or raise struct.error."""
    return ReturnedTicket._make(_RETURN.unpack(datagram))
