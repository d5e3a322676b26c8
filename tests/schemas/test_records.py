"""The records between tasks: what goes in comes out, and every tensor lies on its boundary."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.limits import MAX_FAILURE_LENGTH, TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.messages import Encoding
from anabranch.schemas.model import Ensemble
from anabranch.schemas.records import (
    Failure,
    OpeningSignature,
    OutputSignature,
    Record,
    RecordKind,
    Signature,
    Source,
    TensorSignature,
    UnitSegment,
    decode_failure,
    decode_opening_signature,
    decode_output_signature,
    decode_segments,
    decode_signature,
    encode_segments,
    encode_signature,
    kind_of,
)
from tests.strategies import texts

_u32, _i32, _i64 = st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)


def records() -> st.SearchStrategy[Record]:
    return st.builds(
        Record,
        kind=st.sampled_from(RecordKind),
        source=st.builds(Source, _i32, _i64, _i64),
        signature=st.binary(max_size=40),
        id=texts,
        encoding=st.sampled_from(Encoding),
        deadline_ms=_i64,
        rank=_i32,
        partial_allowed=st.booleans(),
        explain=st.booleans(),
        first_row=_u32,
        rows=_u32,
        total_rows=_u32,
        original=st.binary(max_size=50),
        tensors=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
        times_ms=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        is_whole=st.booleans(),
    )


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


@given(records())
def test_any_record_comes_back_equal(record: Record) -> None:
    encoded = record.encode()
    assert Record.decode(encoded) == record
    assert kind_of(encoded) is record.kind


@given(records())
def test_decoding_copies_neither_original_nor_tensors(record: Record) -> None:
    encoded = record.encode()
    decoded = Record.decode(encoded)
    for part in (decoded.original, *decoded.tensors):
        assert isinstance(part, memoryview)
        assert part.obj is encoded


@given(records())
def test_every_tensor_lies_on_its_boundary(record: Record) -> None:
    for tensor in Record.decode(record.encode()).tensors:
        if len(tensor):
            assert address(tensor) % TENSOR_ALIGNMENT_BYTES == 0


@given(records(), st.data())
def test_bytes_that_end_early_or_go_on_are_no_record(record: Record, data: st.DataObject) -> None:
    encoded = record.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for broken in (encoded[:cut], encoded + b"x"):
        with pytest.raises((struct.error, ValueError)):
            Record.decode(broken)


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
    record = Record(RecordKind.OPENING, Source(0, 0, 0), b"s" * 70_000, "i" * size)
    assert Record.decode(record.encode()) == record


def test_an_opening_s_signature_is_read_with_and_without_its_ensemble() -> None:
    inputs = (TensorSignature("x", "FP32", (4,)),)
    plain = Signature("m", "1", inputs, ("y",))
    ensemble = Ensemble((("a", "1"), ("b", "2")), "weighted_mean", (1.0, 0.5), needed=1, member_timeout_ms=20)
    whole = OpeningSignature("m", "1", inputs, ("y",), ensemble)
    assert decode_opening_signature(encode_signature(whole)) == whole
    assert decode_signature(encode_signature(whole)) == plain
    assert decode_opening_signature(encode_signature(plain)) == OpeningSignature("m", "1", inputs, ("y",))


@given(st.lists(st.builds(UnitSegment, _i32, _i64, _i64, texts, _i64, _u32, _u32, _u32), max_size=4).map(tuple))
def test_any_members_come_back_equal(members: tuple[UnitSegment, ...]) -> None:
    assert decode_segments(memoryview(encode_segments(members))) == members
