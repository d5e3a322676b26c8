"""Claims: eligible records, contents, and replacements of lost records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from anabranch.operators.core.transport.claim_check import (
    PHASE,
    Claim,
    TransportOptions,
    decode_claim,
    is_claim,
    lost,
    too_large,
)
from anabranch.schemas.errors import ExchangeFailed
from anabranch.schemas.records import (
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    RecordKind,
    Segment,
    ShardRecord,
    Source,
    UnitRecord,
    decode_record,
)
from anabranch.schemas.signatures import Failure, OutputSignature, Signature, TensorSignature, encode_signature

SIGNATURE = encode_signature(Signature("m", "7", (TensorSignature("x", "FP32", (4,)),), ("y",)))
OUTPUTS = encode_signature(OutputSignature(3, (TensorSignature("y", "FP32", (4,)),)))
SEGMENT = Segment(Source(1, 2, 3), "é", 9, 0, first_row=32, rows=16, total_rows=100)
TENSORS = (bytes(16 * 4 * 4),)
SHARD = ShardRecord(SEGMENT, SIGNATURE, TENSORS)
UNIT = UnitRecord((SEGMENT, Segment(Source(1, 3, 3))), SIGNATURE, TENSORS)
NO_CLAIM = Claim(0, 1, 3, bytes(16), bytes(16), 0, 0, 0, 10)


def test_transport_options_claim_large_records_only() -> None:
    options = TransportOptions(job="j", shares_memory=True, claim_from_bytes=1000)
    assert not options.is_claimable(999)
    assert options.is_claimable(1000)
    assert not TransportOptions(job="j", claim_from_bytes=0).is_claimable(10**9)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_claim_round_trip_has_the_head_of_its_record(
    attempt: int, process: int, name: bytes, sequence: int, offset: int
) -> None:
    claim = Claim(attempt, process, 3, name, name[::-1], 4095, sequence, offset, 10**10)
    message = claim.encode(SHARD)
    assert is_claim(message)
    assert decode_claim(message) == (claim, replace(SHARD, tensors=()))
    assert len(message) < 300


def test_claim_of_a_unit_has_its_segments() -> None:
    _, head = decode_claim(NO_CLAIM.encode(UNIT))
    assert head == replace(UNIT, tensors=())
    failed = lost(head)
    assert isinstance(failed, UnitRecord)
    assert failed.failure is not None
    assert (failed.segments, failed.failure.code, failed.failure.model_name) == (UNIT.segments, "exchange_failed", "m")


def test_claim_of_a_failure_is_refused() -> None:
    message = NO_CLAIM.encode(SHARD)
    failure = FailureRecord(SEGMENT, Failure("code", "message", "infer"))
    with pytest.raises(ValueError, match="FAILURE"):
        decode_claim(message[: -len(replace(SHARD, tensors=()).encode())] + failure.encode())


def test_too_large_unit_fails_all_its_segments() -> None:
    failed = UnitRecord.decode(too_large(UNIT, 10**10).encode())
    assert (failed.segments, failed.tensors) == (UNIT.segments, ())
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.stage, failed.failure.model_name) == (ExchangeFailed.code, PHASE, "m")
    assert "10000000000 bytes" in failed.failure.message


def test_lost_or_too_large_opening_keeps_all_but_its_original() -> None:
    opening = OpeningRecord(SEGMENT, SIGNATURE, original=b"o", read_ms=1.0)
    _, head = decode_claim(NO_CLAIM.encode(opening))
    for left in (lost(head), too_large(opening, 10**10)):
        assert decode_record(left.encode()) == replace(opening, original=b"")


def test_claim_is_told_from_messages_of_any_kind() -> None:
    assert max(RecordKind) < 255
    assert not is_claim(SHARD.encode())
    assert not is_claim(b"")


@pytest.mark.parametrize(("head", "model"), [(SHARD, "m"), (PartialRecord(SEGMENT, OUTPUTS, TENSORS), "")])
def test_lost_record_fails_its_rows_and_says_what_to_do(head: ShardRecord | PartialRecord, model: str) -> None:
    failed = decode_record(lost(head).encode())
    assert isinstance(failed, FailureRecord)
    assert failed.segment == SEGMENT
    failure = failed.failure
    assert (failure.code, failure.stage, failure.model_name) == (ExchangeFailed.code, PHASE, model)
    assert "send it again" in failure.message
