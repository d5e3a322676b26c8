"""Descriptions inside records round-trip."""

import pytest

from anabranch.schemas.limits import MAX_FAILURE_LENGTH
from anabranch.schemas.model import Ensemble
from anabranch.schemas.signatures import (
    Failure,
    OpeningSignature,
    OutputSignature,
    Signature,
    TensorSignature,
    decode_failure,
    decode_opening_signature,
    decode_output_signature,
    decode_signature,
    encode_signature,
)

SIGNATURE = Signature("m", "1", (TensorSignature("x", "FP32", (4, 2)),), ("y",))


def test_signature_round_trip_gives_equal_bytes() -> None:
    encoded = encode_signature(SIGNATURE)
    assert decode_signature(encoded) == SIGNATURE
    assert encode_signature(decode_signature(encoded)) == encoded
    outputs = OutputSignature(3, SIGNATURE.inputs)
    assert decode_output_signature(encode_signature(outputs)) == outputs
    failure = Failure("code", "message", "stage", "m", "1")
    assert decode_failure(encode_signature(failure)) == failure


@pytest.mark.parametrize("message", ["x" * 20_000_000, "\ud800", "ü" * 10_000], ids=["20 MB", "surrogate", "umlauts"])
def test_failure_message_of_any_kind_is_cut_and_encoded(message: str) -> None:
    failure = Failure("code", message, "stage")
    assert 0 < len(failure.message) <= MAX_FAILURE_LENGTH
    assert decode_failure(encode_signature(failure)) == failure


def test_opening_signature_without_ensemble_is_read() -> None:
    inputs = (TensorSignature("x", "FP32", (4,)),)
    plain = Signature("m", "1", inputs, ("y",))
    ensemble = Ensemble((("a", "1"), ("b", "2")), "weighted_mean", (1.0, 0.5), needed=1, member_timeout_ms=20)
    whole = OpeningSignature("m", "1", inputs, ("y",), ensemble)
    assert decode_opening_signature(encode_signature(whole)) == whole
    assert decode_signature(encode_signature(whole)) == plain
    assert decode_opening_signature(encode_signature(plain)) == OpeningSignature("m", "1", inputs, ("y",))
