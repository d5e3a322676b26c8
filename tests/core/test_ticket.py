"""Tickets in front of records, and their return."""

import struct

import pytest

from anabranch.operators.core.transport.ticket import ReturnedTicket, Ticket, decode_return, has_ticket, open_ticket
from anabranch.schemas.limits import TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.records import RecordKind

TICKET = Ticket(258, b"12345678", bytes((127, 0, 0, 1)), 65_535, 3, 2**32 - 1, 1.5, 0.5)


def test_ticket_comes_off_a_message_unchanged() -> None:
    ticket, record = open_ticket(TICKET.encode() + b"record")
    assert (ticket, bytes(record)) == (TICKET, b"record")


def test_ticket_of_a_message_without_one_is_not_seen() -> None:
    assert has_ticket(TICKET.encode() + b"record")
    assert not any(has_ticket(bytes((mark,)) + b"record") for mark in (*RecordKind, 255))


def test_ticket_keeps_tensors_aligned_and_its_reader_for_java() -> None:
    encoded = TICKET.encode()
    assert len(encoded) % TENSOR_ALIGNMENT_BYTES == 0
    assert (encoded[0], struct.unpack_from("<i", encoded, 4)) == (254, (258,))


def test_ticket_adds_runs_and_keeps_the_longest() -> None:
    after = TICKET.after(2.0).after(0.25)
    assert (after.ran_ms, after.longest_ms) == (3.75, 2.0)
    returned = ReturnedTicket(b"12345678", 258, 3, 2**32 - 1, 3.75, 2.0)
    assert decode_return(after.encode_return()) == returned


def test_ticket_return_of_another_size_is_refused() -> None:
    with pytest.raises(struct.error):
        decode_return(TICKET.encode_return() + b"x")
