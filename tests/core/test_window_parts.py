"""Failures for windows: one for each segment, with code and rows."""

import pytest

from anabranch.operators.core.execution.window_parts import failure_of, failure_parts, name_rows
from anabranch.schemas.errors import InferenceFailed, UnknownModel
from anabranch.schemas.records import FailureRecord, Segment, Source
from anabranch.schemas.signatures import Failure


def test_failure_parts_go_to_the_window_of_each_segment() -> None:
    segments = [Segment(Source(1, 2, 3), "a", rows=4), Segment(Source(5, 6, 7), "b", member=1)]
    failure = Failure("code", "message", "stage 1")
    parts = failure_parts(segments, failure)
    assert [part.key for part in parts] == ["1-2-3", "5-6-7"]
    assert [FailureRecord.decode(part.value) for part in parts] == [FailureRecord(each, failure) for each in segments]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InferenceFailed("poison"), "inference_failed", "poison"),
        (UnknownModel("no model"), "unknown_model", "no model"),
        (KeyError("x"), "internal_error", "KeyError: 'x'"),
    ],
)
def test_failure_of_an_error_has_its_code(error: Exception, code: str, message: str) -> None:
    failure = failure_of(error, "infer")
    assert (failure.code, failure.message, failure.stage) == (code, message, "infer")


def test_name_rows_says_one_row_or_a_range() -> None:
    assert name_rows(3, 1, "poison") == "row 3: poison"
    assert name_rows(3, 2, "poison") == "rows 3 to 4: poison"
