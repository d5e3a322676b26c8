"""How records travel: which may be claims, what a claim says, and what becomes of a record that is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from anabranch.operators.core.transport.claim_check import (
    STAGE,
    Claim,
    TransportOptions,
    decode_claim,
    is_claim,
    lost,
    too_large,
)
from anabranch.schemas.errors import ExchangeFailed
from anabranch.schemas.records import (
    OutputSignature,
    Record,
    RecordKind,
    Signature,
    Source,
    TensorSignature,
    UnitSegment,
    decode_failure,
    encode_segments,
    encode_signature,
)

SIGNATURE = encode_signature(Signature("m", "7", (TensorSignature("x", "FP32", (4,)),), ("y",)))
OUTPUTS = encode_signature(OutputSignature(3, (TensorSignature("y", "FP32", (4,)),)))
SHARD = Record(
    RecordKind.SHARD,
    Source(1, 2, 3),
    SIGNATURE,
    "é",
    first_row=32,
    rows=16,
    total_rows=100,
    tensors=(bytes(16 * 4 * 4),),
)


def test_only_what_is_large_is_claimed() -> None:
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
def test_a_claim_comes_back_with_the_head_of_its_record(
    attempt: int, process: int, name: bytes, sequence: int, offset: int
) -> None:
    claim = Claim(attempt, process, 3, name, name[::-1], 4095, sequence, offset, 10**10)
    message = claim.encode(SHARD)
    assert is_claim(message)
    decoded, head = decode_claim(message)
    assert decoded == claim
    assert (head.kind, head.source, head.id, head.rows, head.tensors) == (RecordKind.SHARD, SHARD.source, "é", 16, ())
    assert len(message) < 300


def test_a_claim_of_a_unit_knows_its_members() -> None:
    members = encode_segments([UnitSegment(1, 2, 3, "é", 0, 32, 16, 100)])
    claim = Claim(0, 1, 3, bytes(16), bytes(16), 0, 0, 0, 10)
    _, head = decode_claim(claim.encode(replace(SHARD, kind=RecordKind.UNIT, original=members)))
    assert (bytes(head.original), head.tensors) == (members, ())
    failed = lost(head)
    assert (failed.kind, bytes(failed.original)) == (RecordKind.FAILURE, members)
    assert decode_failure(failed.signature).model_name == "m"


def test_a_unit_that_is_too_large_fails_all_its_members() -> None:
    members = encode_segments([UnitSegment(1, 2, 3, "é", 0, 32, 16, 100)])
    failed = Record.decode(too_large(replace(SHARD, kind=RecordKind.UNIT, original=members), 10**10).encode())
    assert (failed.kind, bytes(failed.original), failed.tensors) == (RecordKind.FAILURE, members, ())
    failure = decode_failure(failed.signature)
    assert (failure.code, failure.stage, failure.model_name) == (ExchangeFailed.code, STAGE, "m")
    assert "10000000000 bytes" in failure.message


def test_of_an_opening_that_is_lost_or_too_large_only_the_original_is_missing() -> None:
    opening = Record(RecordKind.OPENING, Source(1, 2, 3), SIGNATURE, "a", rows=9, total_rows=9, original=b"o")
    _, head = decode_claim(Claim(0, 1, 3, bytes(16), bytes(16), 0, 0, 0, 10).encode(opening))
    for left in (lost(head), too_large(opening, 10**10)):
        assert Record.decode(left.encode()) == replace(opening, original=b"")


@pytest.mark.parametrize("kind", list(RecordKind))
def test_no_message_is_taken_for_a_claim(kind: RecordKind) -> None:
    assert not is_claim(Record(kind, Source(0, 0, 0), b"").encode())
    assert not is_claim(b"")


@pytest.mark.parametrize(
    ("kind", "signature", "model"), [(RecordKind.SHARD, SIGNATURE, "m"), (RecordKind.PARTIAL, OUTPUTS, "")]
)
def test_a_lost_record_fails_its_rows_and_says_what_to_do(kind: RecordKind, signature: bytes, model: str) -> None:
    head = Record(kind, Source(1, 2, 3), signature, "a", first_row=32, rows=16, total_rows=100, deadline_ms=9)
    failed = Record.decode(lost(head).encode())
    assert (failed.kind, failed.source, failed.id) == (RecordKind.FAILURE, head.source, "a")
    assert (failed.first_row, failed.rows, failed.total_rows, failed.deadline_ms) == (32, 16, 100, 9)
    failure = decode_failure(failed.signature)
    assert (failure.code, failure.stage, failure.model_name) == (ExchangeFailed.code, STAGE, model)
    assert "send it again" in failure.message
