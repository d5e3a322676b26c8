"""Turns the requests of one task into units of work: splits the big, lets the small share a batch.

A request of more rows than `shard_rows` leaves at once, as an OPENING for its window and one SHARD after the other for
the exchange. Everything else goes through the task's `Lane`. What cannot be judged here, because an upgrade
took its model out of the catalog while it waited, goes on by itself: the inference task answers for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from operators.core.batching import Lane, Waiting
from operators.core.splitting import opening, shards
from schemas.errors import AnabranchError, DeadlineExceeded, InternalError
from schemas.model import Batching, Catalog, ModelSpec
from schemas.records import (
    Failure,
    Kind,
    Record,
    decode_signature,
    encode_signature,
    encode_unit,
    peek,
    split_records,
)
from schemas.tensors import Buffer

STAGE = "shard"
#: Shards of small rows grow rather than become more: a window costs per shard.
MAX_SHARDS = 1024
_MAX_POLICIES = 4096
_REQUEST = int(Kind.REQUEST)
#: Of a model that has no batch axis, or that nobody knows any more.
_ALONE = Batching(max_rows=1)


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the waiting requests since state last heard of them.

    Attributes:
        arrived: Number and REQUEST record of each that came and still waits.
        departed: Numbers of those that waited before and have left.
    """

    arrived: list[tuple[int, bytes]]
    departed: list[int]


class Sharding:
    """The shard operator of one task, or of one lane that a failure left behind.

    Args:
        default_priority: What priority 0 counts as.
    """

    def __init__(self, catalog: Catalog, default_priority: int) -> None:
        self._catalog = catalog
        self._default_priority = default_priority
        self._lane = Lane(lambda signature: self._policy_of(signature)[0])
        self._policies: dict[bytes, tuple[Batching, bool]] = {}
        self._arrived: list[Waiting] = []
        self._departed: list[int] = []

    @property
    def waiting_size_bytes(self) -> int:
        """How much waits."""
        return self._lane.size_bytes

    def on_frame(self, frame: Buffer, now_ms: float) -> list[bytes]:
        """Takes REQUEST and REJECTION records in, and returns what leaves without waiting; never raises.

        Args:
            frame: As `schemas.records.join_records` makes it.
            now_ms: Unix time.
        """
        try:
            records = split_records(frame)
        except Exception:  # noqa: BLE001 - no frame of ours: the inference task puts it into a dead letter
            return [bytes(frame)]
        leaving: list[bytes] = []
        for encoded in records:
            try:
                self._on_record(encoded, now_ms, leaving)
            except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
                leaving.append(_refuse(encoded, error))
        return leaving

    def next(self, now_ms: float, *, all_is_due: bool = False) -> list[bytes] | None:
        """The most urgent UNIT that is due, behind REJECTIONs of what has expired; None if nothing is due.

        Args:
            now_ms: Unix time.
            all_is_due: Whether delays do not count: the input has ended.
        """
        departure = self._lane.take(now_ms, all_is_due=all_is_due)
        unit, expired = departure.unit, departure.expired
        if not unit and not expired:
            return None
        self._departed += [request.number for request in unit if request.stored]
        records = []
        if expired:
            self._departed += [request.number for request in expired if request.stored]
            records = [_expire(Record.decode(request.encoded)) for request in expired]
        if unit:
            records.append(encode_unit([request.encoded for request in unit]))
        return records

    def next_deadline(self) -> float | None:
        """When `next` has something to give: 0 for at once, else Unix milliseconds; None while nothing waits."""
        return self._lane.next_deadline()

    def settle(self) -> Changes:
        """What state must learn, now that the task turns to something else."""
        changes = Changes([], self._departed)
        for request in self._arrived:
            if not request.gone:
                # A copy of its own, for it may wait long, and a view would keep its whole frame.
                request.encoded = bytes(request.encoded)
                request.stored = True
                changes.arrived.append((request.number, request.encoded))
        self._arrived, self._departed = [], []
        return changes

    def restore(self, requests: Iterable[tuple[int, bytes]]) -> None:
        """Puts requests back that state held, with their numbers."""
        waiting = []
        for number, encoded in sorted(requests):
            request = self._waiting(encoded)
            request.number, request.stored = number, True
            waiting.append(request)
        self._lane.restore(waiting)

    def _on_record(self, encoded: Buffer, now_ms: float, leaving: list[bytes]) -> None:
        if encoded[0] != _REQUEST:
            leaving.append(bytes(encoded))
            return
        waiting = self._waiting(encoded)
        batching, batchable = self._policy_of(waiting.signature)
        if batchable and waiting.rows > batching.shard_rows:
            leaving += self._split(Record.decode(encoded), batching.shard_rows, now_ms)
            return
        self._lane.add(waiting, now_ms)
        self._arrived.append(waiting)

    def _split(self, request: Record, shard_rows: int, now_ms: float) -> list[bytes]:
        if request.deadline_ms and request.deadline_ms <= now_ms:
            return [_expire(request)]
        # A shard of a model with a fixed batch size holds whole batches.
        fixed_rows = self._model_of(request.signature).fixed_rows or 1
        rows = max(fixed_rows, shard_rows - shard_rows % fixed_rows, -(-request.rows // MAX_SHARDS))
        rows += -rows % fixed_rows
        return [opening(request).encode(), *(shard.encode() for shard in shards(request, rows))]

    def _waiting(self, encoded: Buffer) -> Waiting:
        head = peek(encoded)
        return Waiting(encoded, head.signature, head.rows, head.priority or self._default_priority, head.deadline_ms)

    def _policy_of(self, signature: bytes) -> tuple[Batching, bool]:
        policy = self._policies.get(signature)
        if policy is None:
            if len(self._policies) >= _MAX_POLICIES:  # dynamic shapes make endlessly many signatures
                self._policies.clear()
            try:
                model = self._model_of(signature)
                policy = (model.batching if model.batchable else _ALONE, model.batchable)
            except AnabranchError:
                policy = (_ALONE, False)
            self._policies[signature] = policy
        return policy

    def _model_of(self, signature: bytes) -> ModelSpec:
        decoded = decode_signature(signature)
        return self._catalog.find(decoded.model_name, decoded.model_version)


def _refuse(encoded: Buffer, error: Exception) -> bytes:
    failure = Failure(InternalError.code, f"{type(error).__name__}: {error}", STAGE)
    try:
        return replace(
            Record.decode(encoded), kind=Kind.REJECTION, signature=encode_signature(failure), tensors=()
        ).encode()
    except Exception:  # noqa: BLE001 - no record of ours: the inference task puts it into a dead letter
        return bytes(encoded)


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
