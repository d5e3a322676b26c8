"""Splits a big request along its batch axis into shards."""

from collections.abc import Iterator

from msgspec.structs import replace

from anabranch.operators.core.requests import Request
from anabranch.schemas.records import Record, RecordKind, decode_signature
from anabranch.schemas.tensors import Buffer, bytes_offsets, raw_size_bytes


def row_ranges(total_rows: int, shard_rows: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of every shard: all of `shard_rows`, the last one perhaps smaller."""
    for first_row in range(0, total_rows, shard_rows):
        yield first_row, min(shard_rows, total_rows - first_row)


def opening(request: Request) -> Record:
    """What tells the aggregator of a request that was split; it carries the original, for the dead letter."""
    return Record(
        kind=RecordKind.OPENING,
        source=request.source,
        signature=request.signature,
        id=request.id,
        encoding=request.encoding,
        deadline_ms=request.deadline_ms,
        rank=request.priority,
        partial_allowed=request.partial_allowed,
        explain=request.explain,
        rows=request.rows,
        total_rows=request.rows,
        original=request.original,
        times_ms=_read_and_admitted(request),
    )


def _read_and_admitted(request: Request) -> tuple[float, float]:
    if request.breakdown is not None:
        return request.breakdown.read_ms, request.breakdown.admitted_ms
    # What was restored after a failure is said to have come long ago.
    read_ms = max(request.arrived_ms, request.source.timestamp_ms)
    return read_ms, read_ms


def shards(request: Request, shard_rows: int) -> Iterator[Record]:
    """The shards of a request; their tensors are views into it."""
    signature = decode_signature(request.signature)
    whole = replace(opening(request), kind=RecordKind.SHARD, original=b"", times_ms=())
    offsets = [
        row_offsets(tensor.datatype, tensor.shape, data, request.rows)
        for tensor, data in zip(signature.inputs, request.tensors, strict=True)
    ]
    for first_row, rows in row_ranges(request.rows, shard_rows):
        tensors = tuple(
            data[starts[first_row] : starts[first_row + rows]]
            for starts, data in zip(offsets, request.tensors, strict=True)
        )
        yield replace(whole, first_row=first_row, rows=rows, tensors=tensors)


def row_offsets(datatype: str, row_shape: tuple[int, ...], data: Buffer, rows: int) -> "range | list[int]":
    """Where every row starts, and where the last one ends."""
    row_size_bytes = raw_size_bytes(datatype, row_shape)
    if row_size_bytes is not None:
        # A row without elements has no bytes; a range cannot have step 0.
        return range(0, row_size_bytes * rows + 1, row_size_bytes) if row_size_bytes else [0] * (rows + 1)
    elements_per_row = 1
    for axis in row_shape:
        elements_per_row *= axis
    if elements_per_row == 0:
        return [0] * (rows + 1)
    return bytes_offsets(data, elements_per_row * rows)[::elements_per_row]
