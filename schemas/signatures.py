"""Descriptions inside records; new fields go to the end."""

from functools import lru_cache
from math import prod

import msgspec

from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_FAILURE_LENGTH
from anabranch.schemas.model import Ensemble


class TensorSignature(msgspec.Struct, frozen=True, array_like=True):
    """Description of a tensor.

    Attributes:
        shape: All axes but the batch axis.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """Common properties of a batch's requests, compared as encoded.

    Attributes:
        inputs: In the model's order.
        outputs: Requested names, in order.
    """

    model_name: str
    model_version: str
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[str, ...]

    @property
    def row_elements(self) -> int:
        """Elements per row."""
        elements = 0
        for spec in self.inputs:
            elements += prod(spec.shape)
        return elements


#: Signature of a request in a damaged record.
UNKNOWN_SIGNATURE = Signature("", "", (), ())


class OpeningSignature(Signature, frozen=True, array_like=True):
    """Signature of an OPENING, also readable as a `Signature`."""

    ensemble: Ensemble | None = None


class OutputSignature(msgspec.Struct, frozen=True, array_like=True):
    """Description of a PARTIAL's tensors.

    Attributes:
        task: Index of the task that ran it.
        outputs: In the request's order.
    """

    task: int
    outputs: tuple[TensorSignature, ...]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Failure of a request or some rows.

    Attributes:
        message: Cut at `MAX_FAILURE_LENGTH`.
        stage: Phase of the failure.
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
    """Encode a description; equal ones give equal bytes."""
    return _encode(signature)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_signature(encoded: bytes) -> Signature:
    """Decode a signature."""
    return _signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_opening_signature(encoded: bytes) -> OpeningSignature:
    """Decode an OPENING's signature."""
    return _opening_signatures.decode(encoded)


@lru_cache(maxsize=CACHED_SIGNATURES)
def decode_output_signature(encoded: bytes) -> OutputSignature:
    """Decode a PARTIAL's outputs."""
    return _output_signatures.decode(encoded)


def decode_failure(encoded: bytes) -> Failure:
    """Decode a failure."""
    return _failures.decode(encoded)
