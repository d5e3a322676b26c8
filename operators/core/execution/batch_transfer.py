"""Makes a batch of requests that travel together, and requests of a batch again."""

from collections.abc import Sequence

from anabranch.operators.core.merging.shards import row_offsets
from anabranch.operators.core.requests import Request
from anabranch.schemas.batches import BatchEntry, BatchRecord
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.records import TensorSignature, decode_signature
from anabranch.schemas.tensors import Buffer


def pack(requests: Sequence[Request]) -> BatchRecord:
    """The batch of some requests of one signature."""
    columns = zip(*[request.tensors for request in requests], strict=True)
    return BatchRecord(
        requests[0].signature,
        [_member(request) for request in requests],
        [column[0] if len(column) == 1 else b"".join(column) for column in columns],
    )


def unpack(batch: BatchRecord) -> list[Request]:
    """The requests of a batch; their tensors are views into its own."""
    members = batch.members
    specs = decode_signature(batch.signature).inputs
    rows = [member.rows for member in members]
    columns = [_split(spec, data, rows) for spec, data in zip(specs, batch.tensors, strict=True)]
    return [
        Request(
            batch.signature,
            len(member.original),
            member.rows,
            member.rank,
            member.deadline_ms,
            arrived_ms=member.read_ms,
            source=member.source,
            id=member.id,
            encoding=member.encoding,
            partial_allowed=member.partial_allowed,
            explain=member.explain,
            original=member.original,
            tensors=tuple([column[at] for column in columns]),
            breakdown=_ledger(member) if member.explain else None,
        )
        for at, member in enumerate(members)
    ]


def _member(request: Request) -> BatchEntry:
    breakdown = request.breakdown
    return BatchEntry(
        request.source,
        request.id,
        request.encoding,
        request.deadline_ms,
        request.priority,
        request.partial_allowed,
        request.explain,
        request.rows,
        request.original,
        request.arrived_ms if breakdown is None else breakdown.read_ms,
        0.0 if breakdown is None else breakdown.admitted_ms,
    )


def _ledger(member: BatchEntry) -> LatencyBreakdown:
    sent_ms = member.source.timestamp_ms
    return LatencyBreakdown(sent_ms if sent_ms >= 0 else member.read_ms, member.read_ms, member.admitted_ms)


def _split(spec: TensorSignature, data: Buffer, rows: Sequence[int]) -> list[Buffer]:
    """A tensor's bytes by member."""
    if len(rows) == 1:  # perhaps of a model without batch axis
        return [data]
    offsets = row_offsets(spec.datatype, spec.shape, data, sum(rows))
    parts, first = [], 0
    for count in rows:
        parts.append(data[offsets[first] : offsets[first + count]])
        first += count
    return parts
