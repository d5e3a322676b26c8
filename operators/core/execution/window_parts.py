"""Failures for the windows of requests."""

from collections.abc import Iterable

from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.outputs import WindowPart
from anabranch.schemas.errors import InternalError, ServingError, UnknownModel, UnknownVersion
from anabranch.schemas.records import FailureRecord, Segment
from anabranch.schemas.signatures import Failure


def failure_parts(segments: Iterable[Segment], failure: Failure) -> list[WindowPart]:
    """Return a FAILURE for the window of each segment."""
    return [WindowPart(window_key(each.source), FailureRecord(each, failure).encode()) for each in segments]


def failure_of(error: Exception, phase: str) -> Failure:
    """Return the failure of an exception; an internal error unless it has a code."""
    if isinstance(error, ServingError | UnknownModel | UnknownVersion):
        return Failure(error.code, error.message, phase)
    return Failure(InternalError.code, f"{type(error).__name__}: {error}", phase)


def name_rows(first_row: int, rows: int, message: str) -> str:
    """Prefix a message with its rows."""
    return f"row {first_row}: {message}" if rows == 1 else f"rows {first_row} to {first_row + rows - 1}: {message}"
