"""Frames round-trip, and have the bytes that Java writes and reads."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.frames import read_answers, read_claim, read_requests, write_answers, write_requests
from anabranch.schemas.records import Source

sources = st.builds(
    Source, st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)
)
values = st.binary(max_size=40)


@given(st.lists(st.tuples(st.none() | values, sources), max_size=5))
def test_requests_any_records_round_trip_in_order(records: list[tuple[bytes | None, Source]]) -> None:
    assert read_requests(write_requests(records)) == records


@given(st.lists(st.tuples(values, values), max_size=5))
def test_answers_any_records_round_trip_in_order(answers: list[tuple[bytes, bytes]]) -> None:
    assert list(read_answers(write_answers(answers))) == answers


def test_requests_tombstone_differs_from_empty_value() -> None:
    source = Source(0, 0, 0)
    records = [(None, source), (b"", source), (None, source)]
    assert read_requests(write_requests(records)) == records


def test_write_answers_value_as_view_is_written() -> None:
    assert write_answers([(b"key", memoryview(b"value"))]) == write_answers([(b"key", b"value")])


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
    )  # fmt: skip
    answers = [(b"id", b"value"), (b"", b"!")]
    assert write_answers(answers) == frame
    assert list(read_answers(frame)) == answers


def test_read_requests_cut_header_raises() -> None:
    frame = write_requests([(b"", Source(0, 0, 0))] * 2)
    for size in range(1, 52):
        with pytest.raises((struct.error, ValueError)):
            read_requests(frame[:size])
