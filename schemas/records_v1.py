"""Reads records of layout 1 from state: no version byte, and rows of member m counted from m * total_rows."""

import struct

from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import VERSION, OpeningRecord, PartialRecord, RecordKind, Segment, Source, read_tensors
from anabranch.schemas.tensors import Buffer

_HEADER = struct.Struct("<BBBBHHIIIIiiqqqI")


def read_kept_record(encoded: Buffer) -> OpeningRecord | PartialRecord:
    """Decode a record of a window.

    Raises:
        struct.error, LookupError, ValueError, ArithmeticError: The bytes have neither layout.
    """
    # Byte 1 was the encoding, 0 or 1.
    is_opening = encoded[0] == RecordKind.OPENING
    if encoded[1] >= VERSION:
        return OpeningRecord.decode(encoded) if is_opening else PartialRecord.decode(encoded)
    view = memoryview(encoded)
    fields = _HEADER.unpack_from(view)
    kind, encoding, flags, time_count, id_size, tensor_count, signature_size = fields[:7]
    first_row, rows, total_rows, partition, _, offset, timestamp_ms, deadline_ms, original_size = fields[7:]
    if kind not in (RecordKind.OPENING, RecordKind.PARTIAL):
        raise ValueError(f"a record of kind {kind}, version 1, expected kind 2 or 3: windows keep OPENING and PARTIAL")
    signature_at = _HEADER.size + id_size
    times_at = signature_at + signature_size
    original_at = times_at + 8 * time_count
    request_id, signature = str(view[_HEADER.size : signature_at], "utf-8"), bytes(view[signature_at:times_at])
    times_ms = struct.unpack_from(f"<{time_count}d", view, times_at)
    original = view[original_at : original_at + original_size]
    tensors = read_tensors(view, original_at + original_size, tensor_count)
    member, first_row = divmod(first_row, total_rows)
    segment = Segment(
        Source(partition, offset, timestamp_ms), request_id, deadline_ms, member, first_row, rows, total_rows
    )
    if is_opening:
        partial_allowed, explain = bool(flags & 1), bool(flags & 2)
        return OpeningRecord(
            segment, signature, Encoding(encoding), partial_allowed, explain, original, *(times_ms or (0.0, 0.0))
        )
    return PartialRecord(segment, signature, tensors, bool(flags & 4), *(times_ms or (0.0, 0.0, 0.0)))
