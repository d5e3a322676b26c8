"""Splits a large request along its batch axis into shards."""

from collections.abc import Iterator

from anabranch.operators.core.requests import Request
from anabranch.schemas.limits import MAX_KEPT_ORIGINAL_BYTES
from anabranch.schemas.records import OpeningRecord, Segment, ShardRecord
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Buffer, bytes_offsets, raw_size_bytes
from anabranch.schemas.wire.carried import is_event


def row_ranges(total_rows: int, shard_rows: int) -> Iterator[tuple[int, int]]:
    """Yield first row and rows of each shard."""
    for first_row in range(0, total_rows, shard_rows):
        yield first_row, min(shard_rows, total_rows - first_row)


def opening(request: Request) -> OpeningRecord:
    """Return the OPENING of a request."""
    read_ms, admitted_ms = _read_and_admitted(request)
    # An answer holds its event.
    keeps = len(request.original) <= MAX_KEPT_ORIGINAL_BYTES or is_event(request.source.carried)
    return OpeningRecord(
        _segment(request, 0, request.rows),
        request.signature,
        request.encoding,
        request.partial_allowed,
        request.explain,
        request.original if keeps else b"",
        read_ms,
        admitted_ms,
    )


def _segment(request: Request, first_row: int, rows: int, member: int = 0) -> Segment:
    return Segment(request.source, request.id, request.deadline_ms, member, first_row, rows, request.rows)


def _read_and_admitted(request: Request) -> tuple[float, float]:
    if request.breakdown is not None:
        return request.breakdown.read_ms, request.breakdown.admitted_ms
    # A restored request has an arrival long ago.
    read_ms = request.arrived_ms if request.arrived_ms >= 0 else float(request.source.timestamp_ms)
    return read_ms, read_ms


def shards(request: Request, shard_rows: int, member: int = 0) -> Iterator[ShardRecord]:
    """Yield the shards of a request, as views, for a member of an ensemble."""
    signature = decode_signature(request.signature)
    offsets = [
        row_offsets(tensor.datatype, tensor.shape, data, request.rows)
        for tensor, data in zip(signature.inputs, request.tensors, strict=True)
    ]
    for first_row, rows in row_ranges(request.rows, shard_rows):
        tensors = tuple(
            data[starts[first_row] : starts[first_row + rows]]
            for starts, data in zip(offsets, request.tensors, strict=True)
        )
        yield ShardRecord(_segment(request, first_row, rows, member), request.signature, tensors)


def row_offsets(datatype: str, row_shape: tuple[int, ...], data: Buffer, rows: int) -> "range | list[int]":
    """Return the offset of each row, and the end."""
    row_size_bytes = raw_size_bytes(datatype, row_shape)
    if row_size_bytes is not None:
        # A range cannot have step 0.
        return range(0, row_size_bytes * rows + 1, row_size_bytes) if row_size_bytes else [0] * (rows + 1)
    elements_per_row = 1
    for axis in row_shape:
        elements_per_row *= axis
    if elements_per_row == 0:
        return [0] * (rows + 1)
    return bytes_offsets(data, elements_per_row * rows)[::elements_per_row]
