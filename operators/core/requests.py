"""Valid and refused requests."""

import msgspec

from anabranch.operators.core.scheduling.split_request import SplitRequest
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
        rows: 1 for a model without batch axis.
        priority: 1 is the most urgent.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        number: Order of arrival, set by the queue like `arrived_ms` and `cost`.
        cost_ms: Predicted time, set before it may leave for another task.
        gone: True after it left the queue.
        stored: True while state holds it.
        source: Place in Kafka; identifies the request.
        original: Value of the Kafka record.
        tensors: Raw bytes of each input of the model.
        split: Its records for other tasks, set by the queue.
        holds_order: No later request of its flow may be answered before; it stays in its task.
    """

    signature: bytes
    size_bytes: int
    rows: int
    priority: int
    deadline_ms: int
    number: int = -1
    arrived_ms: float = 0.0
    cost: float = 0.0
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
    split: SplitRequest | None = None
    holds_order: bool = False
    cost_ms: float = 0.0


def undecodable(error: Exception, phase: str) -> Failure:
    """Return the failure of the requests in an undecodable record."""
    return Failure(
        InternalError.code, f"a record between two tasks cannot be decoded ({error}): send the request again", phase
    )


class Refused(msgspec.Struct, frozen=True):
    """A refused request; the id is empty if it is unreadable."""

    source: Source
    id: str
    encoding: Encoding
    original: bytes
    failure: Failure
