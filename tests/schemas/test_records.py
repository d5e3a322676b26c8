"""Records round-trip, aligned and uncopied; damaged ones still give their requests."""

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.limits import TENSOR_ALIGNMENT_BYTES
from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import (
    CARRYING_VERSION,
    RECORD_CLASSES,
    VERSION,
    AnyRecord,
    BatchEntry,
    BatchRecord,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    RecordKind,
    Segment,
    ShardRecord,
    Source,
    UnitRecord,
    check_record_classes,
    decode_record,
    head_of,
    kind_of,
    salvage_entries,
    salvage_segments,
)
from anabranch.schemas.signatures import Failure
from tests.strategies import texts

_u32, _i32, _i64 = st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
_times = st.floats(allow_nan=False)
_signatures = st.binary(max_size=40)
_tensors = st.lists(st.binary(max_size=40), max_size=3).map(tuple)
_sources = st.builds(Source, _i32, _i64, _i64)
_failures = st.builds(Failure, texts, texts, texts)

segments = st.builds(Segment, _sources, texts, _i64, _u32, _u32, _u32, _u32)
entries = st.builds(
    BatchEntry,
    source=_sources,
    id=texts,
    encoding=st.sampled_from(Encoding),
    deadline_ms=_i64,
    priority=_i32,
    partial_allowed=st.booleans(),
    explain=st.booleans(),
    rows=_u32,
    original=st.binary(max_size=30),
    read_ms=_times,
    admitted_ms=_times,
)
batches = st.builds(BatchRecord, st.lists(entries, min_size=1, max_size=4), _signatures, _tensors)
units = st.builds(
    UnitRecord,
    st.lists(segments, min_size=1, max_size=4).map(tuple),
    _signatures,
    _tensors,
    st.booleans(),
    _times,
    _times,
    st.none() | _failures,
)
STRATEGIES: Mapping[RecordKind, st.SearchStrategy[Any]] = {
    RecordKind.SHARD: st.builds(ShardRecord, segments, _signatures, _tensors),
    RecordKind.OPENING: st.builds(
        OpeningRecord,
        segments,
        _signatures,
        st.sampled_from(Encoding),
        st.booleans(),
        st.booleans(),
        st.binary(max_size=50),
        _times,
        _times,
    ),
    RecordKind.PARTIAL: st.builds(
        PartialRecord, segments, _signatures, _tensors, st.booleans(), _times, _times, _times
    ),
    RecordKind.FAILURE: st.builds(FailureRecord, segments, _failures),
    RecordKind.UNIT: units,
    RecordKind.BATCH: batches,
}
records: st.SearchStrategy[AnyRecord] = st.sampled_from(RecordKind).flatmap(STRATEGIES.__getitem__)


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def views_in(record: AnyRecord) -> list[Any]:
    originals = [record.original] if isinstance(record, OpeningRecord) else []
    originals += [entry.original for entry in record.entries] if isinstance(record, BatchRecord) else []
    return [*originals, *getattr(record, "tensors", ())]


def normal(record: AnyRecord) -> AnyRecord:
    """Returns the record with the sequence types of decoding."""
    return msgspec.structs.replace(record, entries=list(record.entries)) if isinstance(record, BatchRecord) else record


def segments_of(record: AnyRecord) -> list[Segment]:
    if isinstance(record, BatchRecord):
        return []
    return list(record.segments) if isinstance(record, UnitRecord) else [record.segment]


# ---- round trips ---------------------------------------------------------------------------------------------------


def test_record_strategies_cover_every_kind() -> None:
    assert set(STRATEGIES) == set(RecordKind) == set(RECORD_CLASSES)


@given(records)
def test_record_of_any_kind_round_trips(record: AnyRecord) -> None:
    encoded = record.encode()
    assert decode_record(encoded) == normal(record)
    assert (kind_of(encoded), encoded[1]) == (record.kind, VERSION)
    assert b"".join(record.parts()) == encoded


@given(records)
def test_record_decoded_tensors_and_originals_are_views(record: AnyRecord) -> None:
    encoded = record.encode()
    for part in views_in(decode_record(encoded)):
        assert isinstance(part, memoryview)
        assert part.obj is encoded


@given(records)
def test_record_decoded_tensors_are_aligned(record: AnyRecord) -> None:
    for tensor in getattr(decode_record(record.encode()), "tensors", ()):
        if len(tensor):
            assert address(tensor) % TENSOR_ALIGNMENT_BYTES == 0


@given(records, st.data())
def test_record_cut_or_longer_bytes_raise(record: AnyRecord, data: st.DataObject) -> None:
    encoded = record.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for broken in (encoded[:cut], encoded + b"x"):
        with pytest.raises((struct.error, LookupError, ValueError)):
            decode_record(broken)


@pytest.mark.parametrize("size", [0, 1024])
def test_record_with_the_longest_id_round_trips(size: int) -> None:
    record = OpeningRecord(Segment(Source(0, 0, 0), "i" * size), b"s" * 70_000)
    assert OpeningRecord.decode(record.encode()) == record


# ---- kinds and versions --------------------------------------------------------------------------------------------


def test_record_of_another_kind_raises() -> None:
    with pytest.raises(ValueError, match="kind 1, version 2; expected kind 6"):
        BatchRecord.decode(ShardRecord(Segment(Source(0, 0, 0)), b"").encode())


@pytest.mark.parametrize("version", [0, 1, CARRYING_VERSION + 1, 255])
@given(record=records)
def test_record_of_another_version_raises(version: int, record: AnyRecord) -> None:
    encoded = bytearray(record.encode())
    encoded[1] = version
    with pytest.raises(ValueError, match=f"version {version}"):
        decode_record(bytes(encoded))


def test_record_classes_without_a_kind_are_refused() -> None:
    missing: dict[RecordKind, type[AnyRecord]] = {
        kind: cls for kind, cls in RECORD_CLASSES.items() if kind is not RecordKind.UNIT
    }
    with pytest.raises(NotImplementedError, match="UNIT"):
        check_record_classes(missing)
    with pytest.raises(NotImplementedError, match="UNIT"):
        check_record_classes(missing | {RecordKind.UNIT: BatchRecord})


def test_record_empty_unit_or_batch_is_refused() -> None:
    unit = UnitRecord((Segment(Source(0, 0, 0)),), b"")
    empty = unit.encode().replace(
        msgspec.msgpack.encode(((unit.segments[0],), None)), msgspec.msgpack.encode(((), None))
    )
    with pytest.raises((ValueError, struct.error)):
        UnitRecord.decode(empty)
    with pytest.raises(LookupError):
        BatchRecord([], b"").encode()


def test_head_of_record_has_no_tensors_and_no_original() -> None:
    segment = Segment(Source(1, 2, 3), "a", 9, 1, 2, 3, 4)
    assert head_of(OpeningRecord(segment, b"s", original=b"o")) == OpeningRecord(segment, b"s")
    for record in (ShardRecord(segment, b"s", (b"t",)), PartialRecord(segment, b"s", (b"t",))):
        assert head_of(record) == msgspec.structs.replace(record, tensors=())
    assert head_of(UnitRecord((segment,), b"s", (b"t",))) == UnitRecord((segment,), b"s")


def test_unit_deadline_is_the_last_of_its_segments() -> None:
    def unit(*deadlines_ms: int) -> UnitRecord:
        return UnitRecord(tuple(Segment(Source(0, 0, 0), "", each, rows=2) for each in deadlines_ms), b"")

    assert (unit(5, 7, 6).deadline_ms, unit(5, 0).deadline_ms, unit(5, 0).rows) == (7, 0, 4)


# ---- damaged records -----------------------------------------------------------------------------------------------


@given(records)
def test_salvage_whole_record_gives_its_segments(record: AnyRecord) -> None:
    assert salvage_segments(record.encode()) == segments_of(record)
    found = salvage_entries(record.encode())
    assert found == (normal(record).entries if isinstance(record, BatchRecord) else [])  # type: ignore[union-attr]


@given(records, st.data())
def test_salvage_cut_record_gives_its_source(record: AnyRecord, data: st.DataObject) -> None:
    encoded = record.encode()
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    assert isinstance(salvage_segments(cut), list)
    found = salvage_entries(cut)
    if isinstance(record, BatchRecord):
        assert [each.source for each in found] == [each.source for each in record.entries[: len(found)]]
    elif not isinstance(record, UnitRecord) and len(cut) > 100:
        assert [each.source for each in salvage_segments(cut)] == [record.segment.source]


@given(st.binary(max_size=200))
def test_salvage_random_bytes_do_not_raise(unknown: bytes) -> None:
    for first in (b"", *[bytes((kind, VERSION)) for kind in RecordKind]):
        salvage_segments(first + unknown)
        salvage_entries(first + unknown)
