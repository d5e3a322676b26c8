"""A request inside a task, and one that was refused."""

import msgspec

from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import Failure, Source
from anabranch.schemas.tensors import Buffer

NOWHERE = Source(-1, -1, -1)


class Request(msgspec.Struct, gc=False):
    """A valid request, for as long as it stays in the task that read it.

    Attributes:
        signature: What it must share with its batch; an encoded `Signature`.
        size_bytes: What it holds in memory.
        rows: 1 for a model without batch axis.
        priority: Its priority as a place in line: 1 is first.
        deadline_ms: Unix time, or `NO_DEADLINE_MS`.
        number: Its place in the order of arrival; the lane gives it.
        arrived_ms: Unix time; the lane notes it.
        cost_ms: How long the task will work for it; the lane notes it.
        gone: It has left the lane.
        stored: State holds it, too.
        source: Its place in Kafka: its name inside the job.
        id: What its sender calls it.
        form: The form to answer in.
        partial_allowed: Whether missing rows may be left out of the answer.
        explain: Whether the answer is to say over how many shards and tasks it was spread.
        original: The Kafka record's value.
        tensors: Raw bytes of each input, in the model's order; views into `original` where that is possible.
        ledger: Where its time goes, if it is to be explained.
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


class Refused(msgspec.Struct, frozen=True):
    """A request that gets no outputs, and why.

    Attributes:
        id: Empty where it could not be read.
    """

    source: Source
    id: str
    encoding: Encoding
    original: bytes
    failure: Failure
