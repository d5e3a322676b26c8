"""Requests inside a task, valid or refused."""

import msgspec

from anabranch.schemas.errors import InternalError
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.tensors import Buffer

NOWHERE = Source(-1, -1, -1)


class Request(msgspec.Struct, gc=False):
    """A valid request in the task that read it.

    Attributes:
        signature: Encoded `Signature`; requests of one batch share it.
        size_bytes: Memory of the request.
        rows: 1 for a model without batch axis.
        priority: 1 is the most urgent.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        number: Order of arrival; the queue sets it.
        arrived_ms: Unix time; the queue sets it.
        cost_ms: Predicted work; the queue sets it.
        gone: Whether it has left the queue.
        stored: Whether state holds it.
        source: Place in Kafka: the name of the request inside the job.
        id: Name that the sender gave.
        encoding: Encoding of the answer.
        partial_allowed: Whether the answer may leave out missing rows.
        explain: Whether the answer says over how many shards and tasks it was spread.
        original: Value of the Kafka record.
        tensors: Raw bytes of each input, in the model's order; views of `original` where possible.
        breakdown: Times of the request, if the answer explains them.
    """

    signature: bytes
    size_bytes: int
    rows: int
    priority: int
    deadline_ms: int
    number: int = -1
    arrived_ms: float = 0.0
    cost_ms: float = 0.0
    gone: bool = False
    stored: bool = False
    source: Source = NOWHERE
    id: str = ""
    encoding: Encoding = Encoding.PROTOBUF
    partial_allowed: bool = False
    explain: bool = False
    original: Buffer = b""
    tensors: tuple[Buffer, ...] = ()
    breakdown: LatencyBreakdown | None = None


def undecodable(error: Exception, phase: str) -> Failure:
    """Returns the failure of the requests in a record that cannot be decoded."""
    return Failure(
        InternalError.code, f"a record between two tasks cannot be decoded ({error}): send the request again", phase
    )


class Refused(msgspec.Struct, frozen=True):
    """A request that was refused, with the failure.

    Attributes:
        id: Empty if it could not be read.
    """

    source: Source
    id: str
    encoding: Encoding
    original: bytes
    failure: Failure
