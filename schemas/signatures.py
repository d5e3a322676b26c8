"""Descriptions inside records: the tensors of a batch, of its outputs, and why rows failed.

Each is positional MessagePack; fields are only ever added at the end.
"""

from functools import lru_cache

import msgspec

from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_FAILURE_LENGTH
from anabranch.schemas.model import Ensemble


class TensorSignature(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a batch, except for its rows.

    Attributes:
        shape: Every axis; without the batch axis where the model has one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """Properties that requests must have in common to share a batch; encodings are compared byte for byte.

    Attributes:
        inputs: In the model's order.
        outputs: The requested outputs in order; all of the model's if the request names none.
    """

    model_name: str
    model_version: str
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[str, ...]


#: Signature of a request in a damaged record.
UNKNOWN_SIGNATURE = Signature("", "", (), ())


class OpeningSignature(Signature, frozen=True, array_like=True):
    """The signature of an OPENING; it can also be read as a `Signature`.

    Attributes:
        ensemble: The ensemble of the request; None for a plain model.
    """

    ensemble: Ensemble | None = None


class OutputSignature(msgspec.Struct, frozen=True, array_like=True):
    """The tensors of a PARTIAL.

    Attributes:
        task: Index of the inference task that ran it.
        outputs: In the order of the request.
    """

    task: int
    outputs: tuple[TensorSignature, ...]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """The cause for which a request, or some of its rows, failed.

    Attributes:
        code: One of `anabranch.schemas.errors`.
        message: Cut at `MAX_FAILURE_LENGTH`, since names from a sender or a model's message can have any length.
        stage: The phase in which it failed; dead letters show it under this name.
    """

    code: str
    message: str
    stage: str
    model_name: str = ""
    model_version: str = ""

    def __post_init__(self) -> None:
        message = self.message
        if len(message) > MAX_FAILURE_LENGTH:
            message = message[: MAX_FAILURE_LENGTH - 1] + "…"
        msgspec.structs.force_setattr(self, "message", message.encode(errors="backslashreplace").decode())


_encode = msgspec.msgpack.Encoder().encode
_signatures = msgspec.msgpack.Decoder(Signature)
_opening_signatures = msgspec.msgpack.Decoder(OpeningSignature)
_output_signatures = msgspec.msgpack.Decoder(OutputSignature)
_failures = msgspec.msgpack.Decoder(Failure)


def encode_signature(signature: Signature | OutputSignature | Failure) -> bytes:
    """Encodes a description; equal values give equal bytes."""
    return _encode(signature)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_signature(encoded: bytes) -> Signature:
    """Decodes the signature of a request, SHARD, UNIT, BATCH or OPENING."""
    return _signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_opening_signature(encoded: bytes) -> OpeningSignature:
    """Decodes the signature of an OPENING with its ensemble."""
    return _opening_signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_output_signature(encoded: bytes) -> OutputSignature:
    """Decodes the description of a PARTIAL's tensors."""
    return _output_signatures.decode(encoded)


def decode_failure(encoded: bytes) -> Failure:
    """Decodes a failure."""
    return _failures.decode(encoded)
