"""Packs requests into a BATCH for another task, and unpacks them there."""

from collections.abc import Callable, Sequence

from anabranch.operators.core.merging.shards import row_offsets
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.records import BatchEntry, BatchRecord
from anabranch.schemas.signatures import Signature, TensorSignature, decode_signature
from anabranch.schemas.tensors import Buffer


def pack(requests: Sequence[Request]) -> BatchRecord:
    """Pack requests of one signature."""
    columns = zip(*[request.tensors for request in requests], strict=True)
    return BatchRecord(
        [_entry(request) for request in requests],
        requests[0].signature,
        [column[0] if len(column) == 1 else b"".join(column) for column in columns],
    )


def unpack(batch: BatchRecord) -> list[Request]:
    """Unpack a batch; tensors are views."""
    entries = batch.entries
    specs = decode_signature(batch.signature).inputs
    rows = [entry.rows for entry in entries]
    columns = [_split(spec, data, rows) for spec, data in zip(specs, batch.tensors, strict=True)]
    return [
        Request(
            batch.signature,
            len(entry.original),
            entry.rows,
            entry.priority,
            entry.deadline_ms,
            arrived_ms=entry.read_ms,
            source=entry.source,
            id=entry.id,
            encoding=entry.encoding,
            partial_allowed=entry.partial_allowed,
            explain=entry.explain,
            original=entry.original,
            tensors=tuple([column[at] for column in columns]),
            breakdown=_breakdown(entry) if entry.explain else None,
        )
        for at, entry in enumerate(entries)
    ]


def decode_batch(encoded: Buffer) -> BatchRecord | None:
    """Decode a BATCH; None if it is damaged, as its run reports."""
    try:
        return BatchRecord.decode(encoded)
    except Exception:  # noqa: BLE001 - damaged bytes raise anything
        return None


def expect_ms(batch: BatchRecord | None, costs_of: Callable[[Signature], BatchCostModel]) -> float:
    """Predict the time of a BATCH; 0 if that is impossible."""
    if batch is None:
        return 0.0
    try:
        signature = decode_signature(batch.signature)
        rows = sum([entry.rows for entry in batch.entries])
        return costs_of(signature).expect_ms(rows, signature.row_elements)
    except Exception:  # noqa: BLE001 - its run reports an unknown model
        return 0.0


def _entry(request: Request) -> BatchEntry:
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


def _breakdown(entry: BatchEntry) -> LatencyBreakdown:
    sent_ms = entry.source.timestamp_ms
    return LatencyBreakdown(sent_ms if sent_ms >= 0 else entry.read_ms, entry.read_ms, entry.admitted_ms)


def _split(spec: TensorSignature, data: Buffer, rows: Sequence[int]) -> list[Buffer]:
    if len(rows) == 1:  # The model may have no batch axis.
        return [data]
    offsets = row_offsets(spec.datatype, spec.shape, data, sum(rows))
    parts, first = [], 0
    for count in rows:
        parts.append(data[offsets[first] : offsets[first + count]])
        first += count
    return parts
