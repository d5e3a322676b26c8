"""What stands on the errors topic: a request that failed, where it came from, why, and its original bytes."""

import msgspec

from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.tensors import Buffer


class LetterSource(msgspec.Struct, frozen=True):
    """Where the request came from."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One failed request, as JSON on the wire.

    Attributes:
        id: Empty where it could not be read.
        code: One of `anabranch.schemas.errors`.
        stage: The operator in which it failed.
        original: The record's value (base64 in JSON), to send again; None where there is none, or where it is too large
            to travel once more: then only `source` says where it is.
    """

    id: str
    code: str
    message: str
    stage: str
    model_name: str = ""
    model_version: str = ""
    source: LetterSource
    original: bytes | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DeadLetter)


def encode_letter(topic: str, source: Source, request_id: str, failure: Failure, original: Buffer | None) -> bytes:
    """A failure as JSON."""
    return _encoder.encode(
        DeadLetter(
            id=request_id,
            code=failure.code,
            message=failure.message,
            stage=failure.stage,
            model_name=failure.model_name,
            model_version=failure.model_version,
            source=LetterSource(topic, source.partition, source.offset, source.timestamp_ms),
            original=None if original is None else bytes(original),
        )
    )


def decode_letter(encoded: bytes) -> DeadLetter:
    """The failure in a record of the errors topic.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return _decoder.decode(encoded)
