"""Shards: every row is in exactly one shard, with its own bytes, uncopied."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.merging.shards import opening, row_offsets, row_ranges, shards
from anabranch.operators.core.requests import Request
from anabranch.schemas.limits import MAX_KEPT_ORIGINAL_BYTES
from anabranch.schemas.records import CarryingSource, Source
from anabranch.schemas.signatures import Signature, TensorSignature, encode_signature
from anabranch.schemas.tensors import BYTES, NUMPY_DTYPES, Tensor, array_from_raw, raw_from_elements
from anabranch.schemas.wire.carried import EVENT, Carried


@pytest.mark.parametrize(
    ("size", "carried", "kept"),
    [
        (MAX_KEPT_ORIGINAL_BYTES, b"", True),
        (MAX_KEPT_ORIGINAL_BYTES + 1, b"", False),
        (MAX_KEPT_ORIGINAL_BYTES + 1, Carried("payments", EVENT).encode(), True),
    ],
)
def test_opening_keeps_a_small_original_or_an_event(size: int, carried: bytes, kept: bool) -> None:
    request = Request(
        b"signature",
        size_bytes=8,
        rows=2,
        priority=1,
        deadline_ms=7,
        source=CarryingSource(1, 2, 3, carried) if carried else Source(1, 2, 3),
        id="a",
        original=bytes(size),
    )
    assert opening(request).original == (request.original if kept else b"")


@given(st.integers(0, 500), st.integers(1, 600))
def test_shard_ranges_cover_every_row_once(total_rows: int, shard_rows: int) -> None:
    ranges = list(row_ranges(total_rows, shard_rows))
    assert [row for first, rows in ranges for row in range(first, first + rows)] == list(range(total_rows))
    assert all(rows == shard_rows for _, rows in ranges[:-1])


@st.composite
def inputs(draw: st.DrawFn, rows: int) -> Tensor:
    datatype = draw(st.sampled_from(["FP32", "INT8", "FP16", BYTES]))
    row_shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    count = rows * prod(row_shape)
    if datatype == BYTES:
        elements = [f"{number}" * (number % 5) for number in range(count)]
        return Tensor("x", BYTES, row_shape, raw_from_elements(elements))
    return Tensor("x", datatype, row_shape, np.arange(count).astype(NUMPY_DTYPES[datatype]).tobytes())


@given(st.data(), st.integers(1, 40), st.integers(1, 45), st.integers(1, 3))
def test_shards_hold_the_rows_of_every_input_in_order(
    data: st.DataObject, rows: int, shard_rows: int, input_count: int
) -> None:
    tensors = [data.draw(inputs(rows)) for _ in range(input_count)]
    signature = Signature("m", "1", tuple(TensorSignature("x", t.datatype, t.shape) for t in tensors), ("y",))
    request = Request(
        encode_signature(signature),
        size_bytes=8,
        rows=rows,
        priority=1,
        deadline_ms=7,
        source=Source(1, 2, 3),
        id="a",
        original=b"original",
        tensors=tuple(memoryview(tensor.data) for tensor in tensors),
    )
    parts = list(shards(request, shard_rows))
    assert [(part.segment.first_row, part.segment.rows) for part in parts] == list(row_ranges(rows, shard_rows))
    for part in parts:
        segment = part.segment
        assert (segment.source, segment.id, segment.deadline_ms) == (request.source, "a", 7)
        assert (segment.total_rows, segment.member) == (rows, 0)
    for index, tensor in enumerate(tensors):
        whole = array_from_raw(tensor.datatype, (rows, *tensor.shape), tensor.data)
        cut = [
            array_from_raw(tensor.datatype, (part.segment.rows, *tensor.shape), part.tensors[index]) for part in parts
        ]
        np.testing.assert_array_equal(np.concatenate(cut), whole)
        assert all(isinstance(part.tensors[index], memoryview) for part in parts)


def test_opening_keeps_the_original_and_no_tensor() -> None:
    request = Request(b"s", 1, 9, 5, 0, id="a", original=b"o", tensors=(b"x",))
    opened = opening(request)
    assert (opened.id, opened.original, opened.segment.rows, opened.segment.total_rows) == ("a", b"o", 9, 9)


def test_row_offsets_of_empty_rows_are_zero() -> None:
    assert list(row_offsets("FP32", (0,), b"", 3)) == [0, 0, 0, 0]
    assert list(row_offsets(BYTES, (2, 0), b"", 2)) == [0, 0, 0]
    assert list(row_offsets("INT8", (), b"abc", 3)) == [0, 1, 2, 3]
    assert list(row_offsets(BYTES, (), raw_from_elements(["a", ""]), 2)) == [0, 5, 9]
