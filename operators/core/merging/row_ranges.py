"""Arithmetic of row ranges, and blocks of output rows."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from anabranch.operators.core.merging.shards import row_offsets
from anabranch.schemas.errors import InferenceFailed
from anabranch.schemas.tensors import Array, Buffer, Tensor, array_from_raw


class RowBlock(msgspec.Struct, frozen=True):
    """Outputs of consecutive rows of a request."""

    first_row: int
    rows: int
    outputs: tuple[Tensor, ...]


class BatchOutputs:
    """Outputs of rows [start, stop) of a batch, for views of their parts."""

    def __init__(self, start: int, stop: int, names: Sequence[str], outputs: Sequence[Array]) -> None:
        self.start = start
        self.stop = stop
        self._tensors = []
        for name, output in zip(names, outputs, strict=True):
            tensor = Tensor.from_array(name, output)
            starts = row_offsets(tensor.datatype, tensor.shape[1:], tensor.data, stop - start)
            self._tensors.append((name, tensor.datatype, tensor.shape[1:], tensor.data, starts))

    def described(self, rows: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Return name, datatype and shape of every output."""
        return tuple([(name, datatype, (rows, *shape)) for name, datatype, shape, _, _ in self._tensors])

    def arrays(self) -> dict[str, Array]:
        """Return the outputs of all rows by name."""
        rows = self.stop - self.start
        return {
            name: array_from_raw(datatype, (rows, *shape), data) for name, datatype, shape, data, _ in self._tensors
        }

    def raw_between(self, first: int, last: int) -> list[Buffer]:
        """Return the raw outputs of the rows [first, last) of the batch."""
        begin, end = first - self.start, last - self.start
        return [data[starts[begin] : starts[end]] for _, _, _, data, starts in self._tensors]

    def rows_between(self, first: int, last: int) -> RowBlock:
        """Return the available rows of [first, last), numbered from `first`."""
        low, high = max(self.start, first), min(self.stop, last)
        rows, begin, end = high - low, low - self.start, high - self.start
        tensors = [
            Tensor(name, datatype, (rows, *shape), data[starts[begin] : starts[end]])
            for name, datatype, shape, data, starts in self._tensors
        ]
        return RowBlock(low - first, rows, tuple(tensors))


def select_rows(part: RowBlock, ranges: Sequence[tuple[int, int]]) -> list[RowBlock]:
    """Return views of the rows in inclusive ranges (first, last)."""
    starts = [row_offsets(each.datatype, each.shape[1:], each.data, part.rows) for each in part.outputs]
    selected = []
    for first, last in ranges:
        begin, end = max(first - part.first_row, 0), min(last + 1 - part.first_row, part.rows)
        if begin < end:
            tensors = [
                Tensor(each.name, each.datatype, (end - begin, *each.shape[1:]), each.data[at[begin] : at[end]])
                for each, at in zip(part.outputs, starts, strict=True)
            ]
            selected.append(RowBlock(part.first_row + begin, end - begin, tuple(tensors)))
    return selected


def merge_rows(parts: Sequence[RowBlock]) -> tuple[Tensor, ...]:
    """Concatenate outputs along axis 0, in order of their rows.

    Raises:
        InferenceFailed: The parts differ in datatype or other axes.
    """
    if len(parts) == 1:
        return parts[0].outputs
    ordered = sorted(parts, key=lambda part: part.first_row)
    merged = []
    for tensors in zip(*(part.outputs for part in ordered), strict=True):
        first = tensors[0]
        if any(t.datatype != first.datatype or t.shape[1:] != first.shape[1:] for t in tensors):
            raise InferenceFailed(
                f"the shards' outputs {first.name!r} differ and cannot be merged, found "
                f"{[list(t.shape) for t in tensors[:3]]}, …: raise shard_rows in the model's model.toml"
            )
        shape = (sum(t.shape[0] for t in tensors), *first.shape[1:])
        merged.append(Tensor(first.name, first.datatype, shape, b"".join([t.data for t in tensors])))
    return tuple(merged)


def overlaps(ranges: Sequence[tuple[int, int]], first_row: int, rows: int) -> bool:
    """Return True if sorted, disjoint ranges contain any of the rows."""
    after = bisect_left(ranges, (first_row + rows, 0))
    return after > 0 and sum(ranges[after - 1]) > first_row


def not_covered(ranges: Sequence[tuple[int, int]], first_row: int, rows: int) -> list[tuple[int, int]]:
    """Return the (first row, rows) outside sorted, disjoint ranges."""
    if not overlaps(ranges, first_row, rows):
        return [(first_row, rows)]
    stop = first_row + rows
    had = [
        (max(first - first_row, 0), min(first + count, stop) - max(first, first_row))
        for first, count in ranges
        if first_row - count < first < stop
    ]
    return [(first_row + first, last + 1 - first) for first, last in missing_ranges(had, rows)]


def insert(ranges: list[tuple[int, int]], first_row: int, rows: int) -> None:
    """Add rows to sorted, disjoint ranges, and join neighbours."""
    at = bisect_left(ranges, (first_row, 0))
    start, stop = first_row, first_row + rows
    low, high = at, at
    if at > 0 and sum(ranges[at - 1]) == start:
        low, start = at - 1, ranges[at - 1][0]
    if at < len(ranges) and ranges[at][0] == stop:
        high, stop = at + 1, sum(ranges[at])
    ranges[low:high] = [(start, stop - start)]


def missing_ranges(covered: Iterable[tuple[int, int]], total_rows: int) -> list[tuple[int, int]]:
    """Return the inclusive (first, last) ranges that no (first row, rows) covers."""
    missing, expected = [], 0
    for first_row, rows in sorted(covered):
        if first_row > expected:
            missing.append((expected, first_row - 1))
        expected = max(expected, first_row + rows)
    if expected < total_rows:
        missing.append((expected, total_rows - 1))
    return missing


def format_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Format inclusive ranges as in answers: `"0-31,64-95"`."""
    return ",".join(f"{first}-{last}" for first, last in ranges)
