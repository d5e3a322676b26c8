"""Units: what goes in comes out, and every tensor lies on its boundary."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.batches import BatchEntry, BatchRecord
from anabranch.schemas.limits import TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import Record, RecordKind, Source, kind_of
from tests.strategies import texts

_u32, _i32, _i64 = st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
_times = st.floats(allow_nan=False)

members = st.builds(
    BatchEntry,
    source=st.builds(Source, _i32, _i64, _i64),
    id=texts,
    encoding=st.sampled_from(Encoding),
    deadline_ms=_i64,
    rank=_i32,
    partial_allowed=st.booleans(),
    explain=st.booleans(),
    rows=_u32,
    original=st.binary(max_size=30),
    read_ms=_times,
    admitted_ms=_times,
)
batches = st.builds(
    BatchRecord,
    signature=st.binary(max_size=40),
    members=st.lists(members, max_size=4),
    tensors=st.lists(st.binary(max_size=40), max_size=3),
)


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


@given(batches)
def test_any_unit_comes_back_equal_and_is_known_by_its_first_byte(batch: BatchRecord) -> None:
    encoded = batch.encode()
    assert BatchRecord.decode(encoded) == batch
    assert kind_of(encoded) is RecordKind.BATCH


@given(batches)
def test_decoding_copies_neither_originals_nor_tensors_and_these_lie_on_their_boundary(batch: BatchRecord) -> None:
    encoded = batch.encode()
    decoded = BatchRecord.decode(encoded)
    for part in (*decoded.tensors, *(member.original for member in decoded.members)):
        assert isinstance(part, memoryview)
        assert part.obj is encoded
    assert all(address(tensor) % TENSOR_ALIGNMENT_BYTES == 0 for tensor in decoded.tensors if len(tensor))


@given(batches, st.data())
def test_bytes_that_end_early_or_go_on_are_no_unit(batch: BatchRecord, data: st.DataObject) -> None:
    encoded = batch.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for broken in (encoded[:cut], encoded + b"x"):
        with pytest.raises((struct.error, ValueError)):
            BatchRecord.decode(broken)


def test_another_record_is_no_unit() -> None:
    with pytest.raises(ValueError, match="kind 1"):
        BatchRecord.decode(Record(RecordKind.SHARD, Source(0, 0, 0), b"").encode())
