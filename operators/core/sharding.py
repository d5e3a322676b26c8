"""Turns the requests of one task into units of work: splits the big, lets the small share a batch.

A request of more rows than `shard_rows` leaves at once, as an OPENING for its window and one SHARD after the other for
the exchange. Everything else goes through the task's `Lane`. What cannot be judged here, because an upgrade
took its model out of the catalog while it waited, goes on by itself: the inference task answers for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from operators.core.batching import Departure, Lane, Waiting
from operators.core.splitting import opening, shards
from schemas.errors import AnabranchError, DeadlineExceeded, InternalError
from schemas.model import Batching, Catalog, ModelSpec
from schemas.records import (
    Failure,
    Head,
    Kind,
    Record,
    decode_signature,
    encode_signature,
    encode_unit,
    peek,
)

STAGE = "shard"
#: Shards of small rows grow rather than become more: a window costs per shard.
MAX_SHARDS = 1024
_MAX_POLICIES = 4096
_REQUEST = int(Kind.REQUEST)


@dataclass(frozen=True, slots=True)
class Emission:
    """What a step of `Sharding` emits, and what became of the waiting requests.

    Attributes:
        records: Encoded UNIT, SHARD, OPENING and REJECTION records, in order.
        kept: The request that came in now waits.
        drained: Requests that waited have left: state is what `snapshot` says now.
    """

    records: Sequence[bytes]
    kept: bool = False
    drained: bool = False


_KEPT = Emission((), kept=True)
_NO_MODEL = (Batching(), False)


class Sharding:
    """The shard operator of one task, or of one lane that a failure left behind.

    Args:
        default_priority: What priority 0 counts as.
        idle_gap_ms: See `Lane`.
    """

    def __init__(self, catalog: Catalog, default_priority: int, idle_gap_ms: float) -> None:
        self._catalog = catalog
        self._default_priority = default_priority
        self._lane = Lane(self._batching_of, idle_gap_ms)
        self._policies: dict[bytes, tuple[Batching, bool]] = {}

    def on_record(self, encoded: bytes, now_ms: float, idle_ms: float) -> Emission:
        """Takes a REQUEST or REJECTION in; never raises.

        Args:
            idle_ms: For how long the task had nothing to do before it.
        """
        try:
            if encoded[0] != _REQUEST:
                return Emission([encoded])
            head = peek(encoded)
            batching, batchable = self._policy_of(head.signature)
            if batchable and head.rows > batching.shard_rows:
                return Emission(self._split(Record.decode(encoded), batching.shard_rows, now_ms))
            if not batchable or head.rows >= batching.max_rows:
                return Emission([encode_unit([encoded])])
            departure = self._lane.on_request(self._waiting(encoded, head), batching, now_ms, idle_ms)
            return _KEPT if departure.kept else _emission(departure)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
            return Emission([_refuse(encoded, error)])

    def on_timer(self, now_ms: float) -> Emission:
        """Lets the batches go whose delay is over."""
        return _emission(self._lane.on_timer(now_ms))

    def flush(self, now_ms: float) -> Emission:
        """Lets everything go."""
        return _emission(self._lane.flush(now_ms))

    def next_deadline(self) -> float | None:
        """When `on_timer` is due; None while nothing waits."""
        return self._lane.next_deadline()

    def snapshot(self) -> list[bytes]:
        """The requests that wait."""
        return self._lane.snapshot()

    def restore(self, requests: list[bytes], now_ms: float) -> None:
        """Puts the requests of a snapshot back."""
        self._lane.restore([self._waiting(encoded, peek(encoded)) for encoded in requests], now_ms)

    def _split(self, request: Record, shard_rows: int, now_ms: float) -> list[bytes]:
        if request.deadline_ms and request.deadline_ms <= now_ms:
            return [_expire(request)]
        # A shard of a model with a fixed batch size holds whole batches.
        fixed_rows = self._model_of(request.signature).fixed_rows or 1
        rows = max(fixed_rows, shard_rows - shard_rows % fixed_rows, -(-request.rows // MAX_SHARDS))
        rows += -rows % fixed_rows
        return [opening(request).encode(), *(shard.encode() for shard in shards(request, rows))]

    def _waiting(self, encoded: bytes, head: Head) -> Waiting:
        return Waiting(encoded, head.signature, head.rows, head.priority or self._default_priority, head.deadline_ms)

    def _batching_of(self, signature: bytes) -> Batching:
        return self._policy_of(signature)[0]

    def _policy_of(self, signature: bytes) -> tuple[Batching, bool]:
        policy = self._policies.get(signature)
        if policy is None:
            if len(self._policies) >= _MAX_POLICIES:  # dynamic shapes make endlessly many signatures
                self._policies.clear()
            try:
                model = self._model_of(signature)
                policy = (model.batching, model.batchable)
            except AnabranchError:
                policy = _NO_MODEL
            self._policies[signature] = policy
        return policy

    def _model_of(self, signature: bytes) -> ModelSpec:
        decoded = decode_signature(signature)
        return self._catalog.find(decoded.model_name, decoded.model_version)


def _emission(departure: Departure) -> Emission:
    records = [_expire(Record.decode(request.encoded)) for request in departure.expired]
    records += [encode_unit([request.encoded for request in unit]) for unit in departure.units]
    return Emission(records, drained=departure.drained)


def _refuse(encoded: bytes, error: Exception) -> bytes:
    failure = Failure(InternalError.code, f"{type(error).__name__}: {error}", STAGE)
    try:
        return replace(
            Record.decode(encoded), kind=Kind.REJECTION, signature=encode_signature(failure), tensors=()
        ).encode()
    except Exception:  # noqa: BLE001 - no record of ours: the inference task puts it into a dead letter
        return encoded


def _expire(request: Record) -> bytes:
    signature = decode_signature(request.signature)
    failure = Failure(
        DeadlineExceeded.code,
        "the deadline passed while the request waited for its batch",
        STAGE,
        signature.model_name,
        signature.model_version,
    )
    return replace(request, kind=Kind.REJECTION, signature=encode_signature(failure), tensors=()).encode()
