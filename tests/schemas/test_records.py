"""The records between operators: what goes in comes out, and the first tensor lies on its boundary."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Form
from schemas.records import (
    ALIGNMENT_BYTES,
    MAX_FAILURE_LENGTH,
    Failure,
    Kind,
    OutputSignature,
    Record,
    Signature,
    Source,
    TensorSignature,
    decode_failure,
    decode_output_signature,
    decode_signature,
    decode_unit,
    encode_signature,
    encode_unit,
    join_records,
    kind_of,
    peek,
    split_records,
)
from tests.strategies import texts

KINDS = sorted(set(Kind) - {Kind.UNIT})
_u32, _i32, _i64 = st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)


def records(*kinds: Kind) -> st.SearchStrategy[Record]:
    return st.builds(
        Record,
        kind=st.sampled_from(kinds or KINDS),
        source=st.builds(Source, _i32, _i64, _i64),
        signature=st.binary(max_size=40),
        id=texts,
        form=st.sampled_from(Form),
        deadline_ms=_i64,
        priority=_i32,
        partial_allowed=st.booleans(),
        explain=st.booleans(),
        first_row=_u32,
        rows=_u32,
        total_rows=_u32,
        original=st.binary(max_size=50),
        tensors=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
    )


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


@given(records())
def test_any_record_comes_back_equal(record: Record) -> None:
    encoded = record.encode()
    assert Record.decode(encoded) == record
    assert kind_of(encoded) is record.kind


@given(records())
def test_a_glance_says_what_decoding_says(record: Record) -> None:
    head = peek(record.encode())
    assert head == (record.signature, record.rows, record.priority, record.deadline_ms)


@given(records(), st.data())
def test_tensors_inside_the_original_are_found_where_they_are(record: Record, data: st.DataObject) -> None:
    size = len(record.original)
    cuts = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for _ in range(2)]
    encoded = record.encode_in_place([(start, stop - start) for start, stop in cuts])
    decoded = Record.decode(encoded)
    assert decoded.original == record.original
    assert decoded.tensors == tuple(record.original[start:stop] for start, stop in cuts)
    assert len(encoded) < 150 + len(record.id.encode()) + len(record.signature) + size  # nothing stands there twice


@given(records())
def test_decoding_copies_neither_original_nor_tensors(record: Record) -> None:
    encoded = record.encode()
    decoded = Record.decode(encoded)
    for part in (decoded.original, *decoded.tensors):
        assert isinstance(part, memoryview)
        assert part.obj is encoded


@given(st.lists(records(Kind.REQUEST), min_size=1, max_size=4))
def test_every_record_s_first_tensor_lies_on_its_boundary_alone_and_in_a_unit(several: list[Record]) -> None:
    unit = encode_unit([record.encode() for record in several])
    for decoded in [*(Record.decode(record.encode()) for record in several), *decode_unit(unit)]:
        if decoded.tensors and len(decoded.tensors[0]):
            assert address(decoded.tensors[0]) % ALIGNMENT_BYTES == 0


@given(st.lists(records(Kind.REQUEST), max_size=5))
def test_a_unit_gives_back_its_requests_in_order(several: list[Record]) -> None:
    unit = encode_unit([record.encode() for record in several])
    assert kind_of(unit) is Kind.UNIT
    assert decode_unit(unit) == several


# ---- frames --------------------------------------------------------------------------------------------------------


@given(st.lists(records(), max_size=5))
def test_a_frame_gives_back_its_records_in_order(several: list[Record]) -> None:
    encoded = [record.encode() for record in several]
    assert split_records(join_records(encoded)) == encoded


@given(st.lists(records(), max_size=5))
def test_a_frame_s_records_are_views_that_lie_on_their_boundaries(several: list[Record]) -> None:
    frame = join_records(memoryview(record.encode()) for record in several)
    assert len(frame) % ALIGNMENT_BYTES == 0
    for view, record in zip(split_records(frame), several, strict=True):
        assert view.obj is frame
        assert address(view) % ALIGNMENT_BYTES == 0
        assert Record.decode(view) == record
        assert peek(view) == peek(record.encode())


@given(st.lists(records(Kind.REQUEST), max_size=4))
def test_a_unit_is_made_of_views_as_of_bytes(several: list[Record]) -> None:
    encoded = [record.encode() for record in several]
    assert encode_unit(split_records(join_records(encoded))) == encode_unit(encoded)


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_a_frame_that_ends_within_a_record_is_none(several: list[Record], data: st.DataObject) -> None:
    *whole, last = [record.encode() for record in several]
    size = data.draw(st.integers(1, len(last) - 1))
    with pytest.raises((struct.error, ValueError)):
        split_records(join_records(whole) + last[:size])


@pytest.mark.parametrize("size", [0, 17, 2**32 - 1])
def test_a_frame_of_which_a_record_s_size_cannot_be_is_none(size: int) -> None:
    with pytest.raises(ValueError, match=f"a record of {size} bytes at 0 in a frame of 16 bytes"):
        split_records(struct.pack("<BxxxI8x", Kind.REQUEST, size))


# ---- signatures ----------------------------------------------------------------------------------------------------

SIGNATURE = Signature("m", "1", (TensorSignature("x", "FP32", (4, 2)),), ("y",))


def test_signatures_come_back_equal_and_equal_ones_have_equal_bytes() -> None:
    encoded = encode_signature(SIGNATURE)
    assert decode_signature(encoded) == SIGNATURE
    assert encode_signature(decode_signature(encoded)) == encoded
    outputs = OutputSignature(3, SIGNATURE.inputs)
    assert decode_output_signature(encode_signature(outputs)) == outputs
    failure = Failure("code", "message", "stage", "m", "1")
    assert decode_failure(encode_signature(failure)) == failure


@pytest.mark.parametrize("message", ["x" * 20_000_000, "\ud800", "ü" * 10_000], ids=["20 MB", "surrogate", "umlauts"])
def test_a_failure_s_message_always_fits_and_can_always_be_sent(message: str) -> None:
    failure = Failure("code", message, "stage")
    assert 0 < len(failure.message) <= MAX_FAILURE_LENGTH
    assert decode_failure(encode_signature(failure)) == failure


@pytest.mark.parametrize("size", [0, 1024])
def test_an_id_of_the_largest_size_fits(size: int) -> None:
    record = Record(Kind.REQUEST, Source(0, 0, 0), b"s" * 70_000, "i" * size)
    assert Record.decode(record.encode()) == record
