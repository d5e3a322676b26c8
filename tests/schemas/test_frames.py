"""Frames round-trip, and have the bytes that Java writes and reads."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.frames import (
    read_answers,
    read_claim,
    read_requests,
    read_waiting,
    write_answers,
    write_requests,
    write_waiting,
)
from anabranch.schemas.records import CarryingSource, Source

places = (st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
sources = st.builds(Source, *places) | st.builds(CarryingSource, *places, st.binary(min_size=1, max_size=20))
values = st.binary(max_size=40)


@given(st.lists(st.tuples(st.none() | values, sources), max_size=5))
def test_requests_any_records_round_trip_in_order(records: list[tuple[bytes | None, Source]]) -> None:
    assert read_requests(write_requests(records)) == records


@given(st.lists(st.tuples(values, values, values), max_size=5))
def test_answers_any_records_round_trip_in_order(answers: list[tuple[bytes, bytes, bytes]]) -> None:
    assert list(read_answers(write_answers(answers))) == answers


def test_requests_tombstone_differs_from_empty_value() -> None:
    source = Source(0, 0, 0)
    records = [(None, source), (b"", source), (None, source)]
    assert read_requests(write_requests(records)) == records


def test_write_answers_value_as_view_is_written() -> None:
    assert write_answers([(b"key", memoryview(b"value"), b"")]) == write_answers([(b"key", b"value", b"")])


def test_requests_sample_has_the_layout_of_java() -> None:
    frame = (
        b"\x03\x00\x00\x00"
        b"\x03\x00\x00\x00" b"\x02\x01\x00\x00" b"\x00\x1a\x71\x18\x02\x00\x00\x00" b"\x00\x1c\x21\x99\x9b\x01\x00\x00"
        b"\xff\xff\xff\xff" b"\x00\x00\x00\x00" b"\x07\x00\x00\x00\x00\x00\x00\x00" b"\xff\xff\xff\xff\xff\xff\xff\xff"
        b"\x00\x00\x00\x00" b"\x01\x00\x00\x00" b"\x08\x00\x00\x00\x00\x00\x00\x00" b"\x01\x00\x00\x00\x00\x00\x00\x00"
        b"abc"
    )  # fmt: skip
    records = [
        (b"abc", Source(258, 9_000_000_000, 1_767_800_642_560)),
        (None, Source(0, 7, -1)),  # a tombstone without a timestamp
        (b"", Source(1, 8, 1)),
    ]
    assert write_requests(records) == frame
    assert read_requests(frame) == records


def test_requests_carried_fields_follow_the_values() -> None:
    records = [(b"abc", Source(1, 2, 3)), (None, CarryingSource(4, 5, 6, b"carried"))]
    plain = write_requests([(b"abc", Source(1, 2, 3)), (None, Source(4, 5, 6))])
    frame = plain + b"\x01\x00\x00\x00\x07\x00\x00\x00carried"
    assert write_requests(records) == frame
    assert read_requests(frame) == records


@given(values, sources)
def test_waiting_any_request_round_trips_with_its_version(value: bytes, source: Source) -> None:
    frame = write_waiting(value, source)
    assert read_waiting(frame) == (value, source)
    assert frame[0] == (2 if source.carried else 1)


def test_read_requests_only_large_values_are_views() -> None:
    records = [(bytes([n]) * size, Source(0, n, 0)) for n, size in enumerate((100, 70_000, 3))]
    frame = write_requests(records)
    for given_as in (frame, memoryview(frame)):
        found = read_requests(given_as)
        assert found == records
        assert [type(value) for value, _ in found] == [bytes, memoryview, bytes]


def test_read_claim_sample_has_the_layout_of_java() -> None:
    claim = b"\xff\xff\xff\xff\x00\x00\x10\x00\x40\x10\x00\x00\x00\x7f\x00\x00"
    assert read_claim(claim) == (0x7F00_0000_1040, 1024 * 1024)


@given(st.lists(st.tuples(st.none() | values, sources), max_size=5))
def test_read_claim_frame_of_requests_is_none(records: list[tuple[bytes | None, Source]]) -> None:
    assert read_claim(write_requests(records)) is None


def test_answers_sample_has_the_layout_of_java() -> None:
    frame = (
        b"\x02\x00\x00\x00" b"\x05\x00\x00\x00" b"id" b"value"
        b"\x00\x00\x00\x00" b"\x01\x00\x00\x00" b"!"
        b"\xfe\xff\xff\xff" b"\x01\x00\x00\x00" b"k" b"v" b"\x03\x00\x00\x00" b"abc"
    )  # fmt: skip
    answers = [(b"id", b"value", b""), (b"", b"!", b""), (b"k", b"v", b"abc")]
    assert write_answers(answers) == frame
    assert list(read_answers(frame)) == answers


def test_read_requests_cut_header_raises() -> None:
    frame = write_requests([(b"", Source(0, 0, 0))] * 2)
    for size in range(1, 52):
        with pytest.raises((struct.error, ValueError)):
            read_requests(frame[:size])
