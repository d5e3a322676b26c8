"""Row ranges: rows in order, each once, and missing ones named exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.merging.row_ranges import (
    RowBlock,
    format_ranges,
    insert,
    merge_rows,
    missing_ranges,
    not_covered,
    overlaps,
    select_rows,
)
from anabranch.schemas.errors import InferenceFailed
from anabranch.schemas.tensors import Tensor

row_sets = st.sets(st.integers(0, 30))


def ranges_of(rows: set[int]) -> list[tuple[int, int]]:
    """Sorted, disjoint (first row, rows) without neighbours, computed naively."""
    ranges: list[tuple[int, int]] = []
    for row in sorted(rows):
        if ranges and sum(ranges[-1]) == row:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((row, 1))
    return ranges


@given(row_sets, st.integers(0, 30), st.integers(1, 8))
def test_row_ranges_insert_joins_and_overlaps_finds(rows: set[int], first_row: int, count: int) -> None:
    ranges = ranges_of(rows)
    new = set(range(first_row, first_row + count))
    assert overlaps(ranges, first_row, count) == bool(rows & new)
    left = not_covered(ranges, first_row, count)
    assert sorted(row for first, some in left for row in range(first, first + some)) == sorted(new - rows)
    if not rows & new:
        insert(ranges, first_row, count)
        assert ranges == ranges_of(rows | new)


@given(row_sets, st.integers(0, 40))
def test_missing_ranges_are_exactly_the_absent_rows(rows: set[int], total_rows: int) -> None:
    rows = {row for row in rows if row < total_rows}
    missing = missing_ranges(ranges_of(rows), total_rows)
    assert [row for first, last in missing for row in range(first, last + 1)] == sorted(set(range(total_rows)) - rows)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6), st.integers(18, 20))
def test_missing_ranges_of_overlapping_ranges_are_right(covered: list[tuple[int, int]], total_rows: int) -> None:
    there = {row for first, rows in covered for row in range(first, first + rows)}
    missing = missing_ranges(covered, total_rows)
    assert {row for first, last in missing for row in range(first, last + 1)} == set(range(total_rows)) - there


def test_format_ranges_names_both_ends() -> None:
    assert format_ranges([(0, 31), (64, 64)]) == "0-31,64-64"
    assert format_ranges([]) == ""


@given(st.permutations(range(5)), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_merge_rows_orders_parts_by_row(order: list[int], sizes: list[int]) -> None:
    numbers = np.arange(sum(sizes) * 2, dtype=np.int64).reshape(-1, 2)
    texts = np.array([f"text {n}" for n in range(sum(sizes))], dtype=object)
    starts = [sum(sizes[:n]) for n in range(5)]
    parts = [
        RowBlock(
            start,
            size,
            (
                Tensor.from_array("y", numbers[start : start + size]),
                Tensor.from_array("t", texts[start : start + size]),
            ),
        )
        for start, size in zip(starts, sizes, strict=True)
    ]
    y, t = merge_rows([parts[n] for n in order])
    np.testing.assert_array_equal(y.to_array(), numbers)
    assert [element.decode() for element in t.to_array()] == texts.tolist()


def test_merge_rows_of_one_part_is_not_copied() -> None:
    outputs = (Tensor("y", "INT8", (2,), b"ab"),)
    assert merge_rows([RowBlock(0, 2, outputs)]) is outputs


@pytest.mark.parametrize("other", [Tensor("y", "INT8", (1, 3), b"abc"), Tensor("y", "UINT8", (1, 2), b"ab")])
def test_merge_rows_of_different_shapes_names_a_remedy(other: Tensor) -> None:
    with pytest.raises(InferenceFailed, match=r"'y' .* raise shard_rows"):
        merge_rows([RowBlock(0, 1, (Tensor("y", "INT8", (1, 2), b"ab"),)), RowBlock(1, 1, (other,))])


@given(st.integers(0, 9), st.integers(1, 9), row_sets)
def test_select_rows_gives_views_of_the_rows(first_row: int, count: int, wanted: set[int]) -> None:
    numbers = np.arange(first_row, first_row + count)
    outputs = (
        Tensor.from_array("n", np.stack([numbers, -numbers], axis=1)),
        Tensor.from_array("s", np.array([b"%d" % n for n in numbers], dtype=object)),
    )
    ranges = [(first, first + rows - 1) for first, rows in ranges_of(wanted)]
    selected = select_rows(RowBlock(first_row, count, outputs), ranges)
    there = [row for part in selected for row in range(part.first_row, part.first_row + part.rows)]
    assert there == sorted(wanted & set(numbers.tolist()))
    assert [row for part in selected for row in part.outputs[0].to_array()[:, 0].tolist()] == there
    assert [text for part in selected for text in part.outputs[1].to_array().tolist()] == [b"%d" % n for n in there]
