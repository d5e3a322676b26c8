"""Records in state: those of layout 1 and of today are read."""

import struct

import pytest
from hypothesis import given
from msgspec.structs import replace

from anabranch.schemas.records import AnyRecord, OpeningRecord, PartialRecord, RecordKind
from anabranch.schemas.records_v1 import read_kept_record
from tests.schemas import golden_samples as golden
from tests.schemas.test_records import STRATEGIES

OLD = {name: (golden.FOLDER / name).read_bytes() for name in golden.OLD if "record" in name}


@given(STRATEGIES[RecordKind.OPENING] | STRATEGIES[RecordKind.PARTIAL])
def test_kept_record_of_today_is_read(record: AnyRecord) -> None:
    assert read_kept_record(record.encode()) == record


def test_kept_partial_rows_count_within_the_member() -> None:
    encoded = bytearray(OLD["v1/record_partial.bin"])
    struct.pack_into("<I", encoded, 12, 2 * 64 + 32)
    record = read_kept_record(bytes(encoded))
    assert isinstance(record, PartialRecord)
    assert record.segment == replace(golden.OLD_PARTIAL.segment, member=2)


def test_kept_opening_original_is_a_view() -> None:
    encoded = OLD["v1/record_opening.bin"]
    record = read_kept_record(encoded)
    assert isinstance(record, OpeningRecord)
    assert isinstance(record.original, memoryview)
    assert record.original.obj is encoded


@pytest.mark.parametrize("name", OLD)
def test_kept_record_cut_short_raises(name: str) -> None:
    for size in range(len(OLD[name])):
        with pytest.raises((struct.error, LookupError, ValueError)):
            read_kept_record(OLD[name][:size])


@pytest.mark.parametrize("broken", [b"", b"\x02", b"\x03" * 10, b"\x02\x00" + bytes(100), b"\x01\x01" + bytes(80)])
def test_kept_record_damaged_raises(broken: bytes) -> None:
    with pytest.raises((struct.error, LookupError, ValueError, ZeroDivisionError)):
        read_kept_record(broken)
