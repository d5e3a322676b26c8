"""Dead letters: failed requests on the errors topic, as JSON."""

import msgspec

from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.tensors import Buffer


class DeadLetterSource(msgspec.Struct, frozen=True):
    """The Kafka record of the request."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One failed request.

    Attributes:
        id: Empty if unreadable.
        stage: Phase of the failure.
        original: The Kafka value, base64 in JSON; None if missing or over the size limit.
    """

    id: str
    code: str
    message: str
    stage: str
    model_name: str = ""
    model_version: str = ""
    source: DeadLetterSource
    original: bytes | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DeadLetter)


def encode_dead_letter(topic: str, source: Source, request_id: str, failure: Failure, original: Buffer | None) -> bytes:
    """Encode a dead letter."""
    return _encoder.encode(
        DeadLetter(
            id=request_id,
            code=failure.code,
            message=failure.message,
            stage=failure.stage,
            model_name=failure.model_name,
            model_version=failure.model_version,
            source=DeadLetterSource(topic, source.partition, source.offset, source.timestamp_ms),
            original=None if original is None else bytes(original),
        )
    )


def decode_dead_letter(encoded: bytes) -> DeadLetter:
    """Decode a dead letter, or raise a MsgspecError."""
    return _decoder.decode(encoded)
