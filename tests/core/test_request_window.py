"""Window: any records in any order give one closing, with the right rows and reason."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.merging.request_window import Closing, Window, answer_of
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.messages import Encoding, ErrorResponse, InferResponse
from anabranch.schemas.model import Ensemble
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    Segment,
    Source,
    UnitRecord,
)
from anabranch.schemas.signatures import (
    Failure,
    OpeningSignature,
    OutputSignature,
    Signature,
    TensorSignature,
    encode_signature,
)
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.core.models import now_ms

WRITER = ResponseWriter("requests", 1_000_000, now_ms)
SOURCE = Source(1, 2, 3)
TIMEOUT_MS, REMEMBER_MS = 100, 1_000
POLICY = SchedulingPolicy(window_timeout_ms=TIMEOUT_MS, remember_ms=REMEMBER_MS)
SIGNATURE = encode_signature(Signature("m", "1", (TensorSignature("x", "INT64", ()),), ("y",)))
MEMBERS = (("a", "1"), ("b", "1"), ("b", "2"))


def opening(
    total_rows: int, *, partial: bool = False, deadline_ms: int = NO_DEADLINE_MS, explain: bool = False
) -> bytes:
    return OpeningRecord(
        Segment(SOURCE, "a", deadline_ms, rows=total_rows, total_rows=total_rows),
        SIGNATURE,
        partial_allowed=partial,
        explain=explain,
        original=b"original",
        read_ms=1.0,
        admitted_ms=2.0,
    ).encode()


def panel_opening(total_rows: int, needed: int, *, partial: bool = False) -> bytes:
    """The OPENING of an ensemble of three."""
    ensemble = Ensemble(MEMBERS, "max", (1.0, 1.0, 1.0), needed)
    signature = OpeningSignature("m", "1", (TensorSignature("x", "INT64", ()),), ("y",), ensemble)
    return replace(
        OpeningRecord.decode(opening(total_rows, partial=partial)), signature=encode_signature(signature)
    ).encode()


def segment(first_row: int, rows: int, of: int | None) -> Segment:
    """A segment with rows numbered over all members of an ensemble of `of` rows, or of a plain model."""
    member, first_row = divmod(first_row, of) if of else (0, first_row)
    return Segment(SOURCE, "a", member=member, first_row=first_row, rows=rows, total_rows=of or 1)


def part(first_row: int, rows: int, task: int = 0, width: int = 1, of: int | None = None) -> bytes:
    """A PARTIAL whose row r has the output 10 * r."""
    signature = OutputSignature(task, (TensorSignature("y", "INT64", (width,)),))
    values = np.repeat(np.arange(first_row, first_row + rows) * 10, width)
    return PartialRecord(
        segment(first_row, rows, of),
        encode_signature(signature),
        (values.astype("<i8").tobytes(),),
        taken_ms=3.0,
        started_ms=4.0,
        ended_ms=5.0,
    ).encode()


def fault(first_row: int, rows: int, of: int | None = None) -> bytes:
    failure = Failure("inference_failed", f"row {first_row}: poison", "infer", "m", "1")
    return FailureRecord(segment(first_row, rows, of), failure).encode()


class StoredWindow:
    """A window with its kept records."""

    def __init__(self) -> None:
        self.defects = Defects(Meter())
        self.window = Window(POLICY, self.defects)
        self.kept: list[bytes] = []
        self.closings: list[Closing] = []

    def put(self, *records: bytes, now_ms: float = 0) -> None:
        for encoded in records:
            keep, closing = self.window.on_record(encoded, now_ms)
            if keep is not None:
                self.kept.append(bytes(keep))
            self.closings += [closing] if closing else []

    def tick(self, now_ms: float) -> None:
        closing = self.window.on_timer(now_ms)
        self.closings += [closing] if closing else []

    def restart(self) -> None:
        snapshot = self.window.snapshot()
        self.window = Window(POLICY)
        self.window.restore(snapshot)
        assert self.window.snapshot() == snapshot

    def answer(self) -> InferResponse | ErrorResponse:
        [closing] = self.closings
        outputs = answer_of(closing, self.kept, WRITER)
        [answer] = [codec.decode_response(output.value) for output in outputs if isinstance(output, Answer)]
        failed = isinstance(answer, ErrorResponse) or "error_code" in answer.parameters
        assert len(outputs) == 1 + failed  # a dead letter for every failure
        return answer


def rows_in(answer: InferResponse | ErrorResponse) -> list[int]:
    assert isinstance(answer, InferResponse)
    values = answer.outputs[0].to_array()[:, 0].tolist()
    return [value // 10 for value in values]


# ---- single properties ---------------------------------------------------------------------------------------------


def test_window_complete_request_is_answered_in_row_order() -> None:
    records = [opening(6), part(0, 2), part(2, 2), part(4, 2)]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)):
        desk = StoredWindow()
        desk.put(*(records[n] for n in order))
        assert rows_in(desk.answer()) == [0, 1, 2, 3, 4, 5]


def test_window_duplicate_changes_nothing() -> None:
    desk = StoredWindow()
    desk.put(
        opening(4), opening(4), part(0, 2), part(0, 2), part(2, 2), part(2, 2), opening(4), part(0, 2), fault(0, 2)
    )
    assert rows_in(desk.answer()) == [0, 1, 2, 3]
    assert len(desk.kept) == 3


@pytest.mark.parametrize("second", [(part(0, 1), fault(1, 1), part(2, 2)), (fault(0, 4),), (part(1, 2),)])
def test_window_second_outcome_of_a_shard_changes_nothing(second: tuple[bytes, ...]) -> None:
    desk = StoredWindow()
    desk.put(opening(6), part(0, 4), *second, part(4, 2))
    assert rows_in(desk.answer()) == [0, 1, 2, 3, 4, 5]


def test_window_new_rows_of_a_second_run_count() -> None:
    for first, second in (((0, 3), (1, 5)), ((2, 2), (0, 6)), ((3, 3), (0, 4))):
        desk = StoredWindow()
        desk.put(opening(6), part(*first), part(*second))
        assert rows_in(desk.answer()) == [0, 1, 2, 3, 4, 5]


def test_window_failed_rows_stay_failed() -> None:
    desk = StoredWindow()
    desk.put(opening(6, partial=True), fault(2, 1), part(0, 6))
    assert rows_in(desk.answer()) == [0, 1, 3, 4, 5]
    desk = StoredWindow()
    desk.put(opening(6, partial=True), part(0, 3), fault(0, 6))
    assert rows_in(desk.answer()) == [0, 1, 2]


def test_window_failure_closes_a_request_for_all_rows() -> None:
    desk = StoredWindow()
    desk.put(opening(6), part(0, 2), fault(2, 1))
    answer = desk.answer()
    assert isinstance(answer, ErrorResponse)
    assert (answer.code, answer.message) == ("inference_failed", "row 2: poison")
    desk.put(part(3, 3))
    assert len(desk.closings) == 1


def test_window_failure_of_a_partial_request_waits() -> None:
    desk = StoredWindow()
    desk.put(opening(6, partial=True), fault(2, 1), part(0, 2))
    assert not desk.closings
    desk.put(part(3, 3))
    answer = desk.answer()
    assert rows_in(answer) == [0, 1, 3, 4, 5]
    assert isinstance(answer, InferResponse)
    assert answer.parameters == {
        "missing_rows": "2-2",
        "error_code": "inference_failed",
        "error_message": "row 2: poison",
    }


def test_window_all_rows_failed_answers_the_failure() -> None:
    desk = StoredWindow()
    desk.put(opening(2, partial=True), fault(0, 1), fault(1, 1))
    assert isinstance(desk.answer(), ErrorResponse)


@pytest.mark.parametrize(
    ("deadline_ms", "closes_ms", "code"), [(NO_DEADLINE_MS, 100, "incomplete_answer"), (40, 40, "deadline_exceeded")]
)
@pytest.mark.parametrize("partial", [False, True])
def test_window_at_its_deadline_names_missing_rows(deadline_ms: int, closes_ms: int, code: str, partial: bool) -> None:
    desk = StoredWindow()
    desk.put(part(0, 2), opening(6, partial=partial, deadline_ms=deadline_ms), part(4, 1))
    assert desk.window.next_deadline() == closes_ms
    desk.tick(closes_ms - 0.5)
    assert not desk.closings
    desk.tick(closes_ms)
    answer = desk.answer()
    if partial:
        assert rows_in(answer) == [0, 1, 4]
        assert isinstance(answer, InferResponse)
        assert (answer.parameters["missing_rows"], answer.parameters["error_code"]) == ("2-3,5-5", code)
    else:
        assert isinstance(answer, ErrorResponse)
        assert answer.code == code
        assert "rows 2-3,5-5 of 6" in answer.message


def test_window_late_opening_closes_at_the_next_timer() -> None:
    desk = StoredWindow()
    desk.put(opening(6, deadline_ms=40), now_ms=50)
    assert desk.window.next_deadline() == 40
    desk.tick(50)
    assert isinstance(desk.answer(), ErrorResponse)


def test_window_closed_is_forgotten_after_remember_ms() -> None:
    desk = StoredWindow()
    desk.put(opening(2), fault(0, 1), now_ms=7)
    assert desk.window.next_deadline() == 7 + REMEMBER_MS
    assert not desk.window.is_forgotten(6 + REMEMBER_MS)
    assert desk.window.is_forgotten(7 + REMEMBER_MS)
    desk.tick(7 + REMEMBER_MS)
    assert len(desk.closings) == 1


@pytest.mark.parametrize("last", [part(2, 4), fault(2, 4)])
def test_window_closed_is_forgotten_once_all_rows_came(last: bytes) -> None:
    desk = StoredWindow()
    desk.put(part(5, 1), opening(6), fault(1, 1), now_ms=7.0)
    for late in (part(0, 1), opening(6), part(0, 1), fault(1, 1), part(5, 1)[:-1], b"", b"\xff" * 99):
        desk.put(late, now_ms=8.0)
        desk.restart()
        assert not desk.window.is_forgotten(8)
    desk.put(last, now_ms=9)
    assert desk.window.is_forgotten(9)
    assert len(desk.closings) == 1


def test_window_answered_is_forgotten_at_once() -> None:
    desk = StoredWindow()
    desk.put(opening(2), part(0, 1), part(1, 1), now_ms=7)
    assert desk.window.is_forgotten(7)
    desk = StoredWindow()
    desk.put(panel_opening(2, needed=1), part(0, 6, of=2), now_ms=7)
    assert desk.window.is_forgotten(7)


def test_window_without_opening_is_dropped_unanswered() -> None:
    desk = StoredWindow()
    desk.put(part(0, 1))
    assert not desk.window.is_forgotten(TIMEOUT_MS - 1)
    desk.tick(TIMEOUT_MS)
    assert desk.window.is_forgotten(TIMEOUT_MS)
    assert not desk.closings


def test_window_explained_answer_counts_shards_and_tasks() -> None:
    desk = StoredWindow()
    desk.put(opening(6, explain=True), part(0, 2, task=1), part(2, 2, task=0), part(4, 2, task=1))
    answer = desk.answer()
    assert isinstance(answer, InferResponse)
    assert {name: answer.parameters[name] for name in ("shards", "tasks")} == {"shards": 3, "tasks": 2}


def test_window_unmergeable_parts_become_an_error() -> None:
    desk = StoredWindow()
    desk.put(opening(4), part(0, 2, width=2), part(2, 2, width=3))
    answer = desk.answer()
    assert isinstance(answer, ErrorResponse)
    assert answer.code == "inference_failed"


def test_window_inconsistent_part_becomes_an_error() -> None:
    desk = StoredWindow()
    broken = PartialRecord(segment(2, 2, None), b"\xc1").encode()
    desk.put(opening(4), part(0, 2), broken)
    answer = desk.answer()
    assert isinstance(answer, ErrorResponse)
    assert answer.code == "internal_error"


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole + b"x"], ids=["cut", "longer"])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_window_damaged_opening_fails_its_request(damage: Callable[[bytes], bytes], encoding: Encoding) -> None:
    desk = StoredWindow()
    whole = replace(OpeningRecord.decode(opening(4)), encoding=encoding).encode()
    desk.put(part(0, 2), damage(whole), damage(whole), opening(4), part(2, 2))
    answer = desk.answer()
    assert isinstance(answer, ErrorResponse)
    assert (answer.id, answer.code) == ("a", "internal_error")
    assert "cannot be decoded" in answer.message
    [closing] = desk.closings
    [output, dead_letter] = answer_of(closing, desk.kept, WRITER)
    assert codec.encoding_of(output.value) is encoding
    assert decode_dead_letter(dead_letter.value).source.offset == SOURCE.offset
    assert [defect.phase for defect in desk.defects.drain()] == ["merge"]


@pytest.mark.parametrize("record", [part(2, 2), fault(2, 2)], ids=["PARTIAL", "FAILURE"])
def test_window_damaged_part_fails_its_rows(record: bytes) -> None:
    desk = StoredWindow()
    desk.put(opening(4, partial=True), record[:-1], part(0, 2))
    answer = desk.answer()
    assert rows_in(answer) == [0, 1]
    assert isinstance(answer, InferResponse)
    assert (answer.parameters["missing_rows"], answer.parameters["error_code"]) == ("2-3", "internal_error")
    assert len(desk.defects.drain()) == 1


@pytest.mark.parametrize("unknown", [b"", b"\x00", b"\x03", b"\x02\x01" * 60, b"\xff" * 100])
def test_window_bytes_without_a_request_are_noted_only(unknown: bytes) -> None:
    desk = StoredWindow()
    desk.put(unknown)
    assert (desk.kept, desk.closings, len(desk.defects.drain())) == ([], [], 1)
    assert desk.window.is_forgotten(TIMEOUT_MS)
    desk.put(opening(2), part(0, 2))
    assert rows_in(desk.answer()) == [0, 1]


def test_window_damaged_unit_is_dropped() -> None:
    desk = StoredWindow()
    desk.put(UnitRecord((Segment(SOURCE, "a"), Segment(SOURCE, "a")), SIGNATURE).encode())
    assert (desk.kept, desk.closings, len(desk.defects.drain())) == ([], [], 1)


def test_window_snapshot_does_not_grow_with_the_request() -> None:
    desk = StoredWindow()
    desk.put(OpeningRecord(Segment(SOURCE, "a", total_rows=30_000), SIGNATURE, original=bytes(10_000_000)).encode())
    for shard in range(999):
        desk.put(part(shard * 30, 30))
        assert len(desk.window.snapshot()) < 100
    assert not desk.closings


# ---- ensembles: rows of a, then of b@1 and b@2 --------------------------------------------------------------------


def test_window_ensemble_answers_once_no_member_is_pending() -> None:
    desk = StoredWindow()
    desk.put(panel_opening(2, needed=1), part(0, 2, of=2), fault(2, 1, of=2))
    assert not desk.closings
    desk.put(part(4, 1, of=2), part(5, 1, of=2))  # the other row of b@1 cannot change the answer
    answer = desk.answer()
    assert rows_in(answer) == [4, 5]
    assert isinstance(answer, InferResponse)
    assert answer.parameters["missing_members"] == "b@1"


def test_window_ensemble_fails_once_too_few_members_remain() -> None:
    desk = StoredWindow()
    desk.put(panel_opening(2, needed=2), fault(0, 1, of=2))
    assert not desk.closings
    desk.put(fault(3, 1, of=2))
    answer = desk.answer()
    assert isinstance(answer, ErrorResponse)
    assert (answer.code, answer.message) == ("inference_failed", "member m: row 0: poison")


def test_window_ensemble_at_its_deadline_uses_complete_members() -> None:
    desk = StoredWindow()
    desk.put(panel_opening(2, needed=1), part(0, 2, of=2), part(2, 1, of=2))
    desk.tick(TIMEOUT_MS)
    answer = desk.answer()
    assert rows_in(answer) == [0, 1]
    assert isinstance(answer, InferResponse)
    assert answer.parameters == {
        "missing_members": "b@1,b@2",
        "error_code": "incomplete_answer",
        "error_message": "the window closed after 100 ms, members b@1, b@2 are not complete: "
        "raise scheduling.window_timeout_ms",
    }


def test_window_ensemble_partial_answer_has_the_common_rows() -> None:
    desk = StoredWindow()
    desk.put(panel_opening(3, needed=3, partial=True), part(0, 2, of=3), part(4, 2, of=3), part(6, 3, of=3))
    desk.tick(TIMEOUT_MS)
    answer = desk.answer()
    assert rows_in(answer) == [7]  # row 1 of the last member is largest
    assert isinstance(answer, InferResponse)
    assert answer.parameters["missing_rows"] == "0-0,2-2"


def test_window_hopeless_ensemble_closes_at_once() -> None:
    for failed in ((0, 1), (1, 2), (0, 2)):
        desk = StoredWindow()
        desk.put(panel_opening(1, needed=2), *[fault(member, 1, of=1) for member in failed])
        assert len(desk.closings) == 1, failed


@given(
    total=st.integers(1, 3),
    needed=st.integers(1, 3),
    partial=st.booleans(),
    sent=st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(1, 3)), max_size=12),
)
def test_window_ensemble_closes_as_soon_as_a_row_model_says(
    total: int, needed: int, partial: bool, sent: list[tuple[bool, int, int]]
) -> None:
    desk = StoredWindow()
    desk.put(panel_opening(total, needed=needed, partial=partial))
    rows: dict[tuple[int, int], bool] = {}
    for good, at, count in sent:
        member, first = at % 3, at // 3 % total
        size = min(count, total - first)
        desk.put((part if good else fault)(member * total + first, size, of=total))
        for row in range(first, first + size):
            rows.setdefault((member, row), good)
        outcomes = [[rows.get((each, row)) for row in range(total)] for each in range(3)]
        complete = sum(None not in each and False not in each for each in outcomes)
        pending = sum(None in each and False not in each for each in outcomes)
        is_heard = len(rows) == 3 * total
        if complete >= needed:
            is_decided = pending == 0 and False in rows.values()
        else:
            is_decided = complete + pending < needed and not partial
        assert bool(desk.closings) == (is_heard or is_decided)
        if desk.closings:
            assert desk.closings[0].is_answerable or complete < needed
            return


# ---- any sequence -------------------------------------------------------------------------------------------------


class WindowMachine(RuleBasedStateMachine):
    """A window beside two sets of row numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = StoredWindow()
        self.now_ms = 0.0
        self.received: set[int] = set()
        self.failed: set[int] = set()
        self.opened = False
        self.first_ms: float | None = None

    @initialize(
        total_rows=st.integers(1, 9), partial=st.booleans(), deadline_ms=st.sampled_from([NO_DEADLINE_MS, 30, 150])
    )
    def begin(self, total_rows: int, partial: bool, deadline_ms: int) -> None:
        self.total, self.partial, self.deadline_ms = total_rows, partial, deadline_ms

    def put(self, encoded: bytes, rows: Iterable[int], into: set[int]) -> None:
        is_closed = bool(self.desk.closings)
        self.desk.put(encoded, now_ms=self.now_ms)
        if not is_closed:
            self.first_ms = self.now_ms if self.first_ms is None else self.first_ms
            into.update(set(rows) - self.received - self.failed)

    @rule()
    def opening(self) -> None:
        self.put(opening(self.total, partial=self.partial, deadline_ms=self.deadline_ms), [], set())
        self.opened = True

    @rule(data=st.data(), good=st.booleans())
    def rows(self, data: Any, good: bool) -> None:
        first = data.draw(st.integers(0, self.total - 1))
        count = data.draw(st.integers(1, self.total - first))
        encoded = part(first, count) if good else fault(first, count)
        self.put(encoded, range(first, first + count), self.received if good else self.failed)

    @rule(step_ms=st.sampled_from([1, 20, 80]))
    def wait(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @rule()
    def timer(self) -> None:
        self.desk.tick(self.now_ms)

    @rule()
    def crash_and_restore(self) -> None:
        self.desk.restart()

    @precondition(lambda self: self.desk.closings)
    @rule()
    def forget(self) -> None:
        assert self.desk.window.is_forgotten(self.desk.window.next_deadline())

    def is_due(self) -> bool:
        if self.first_ms is None:
            return False
        return self.now_ms >= (self.deadline_ms or self.first_ms + TIMEOUT_MS)

    @invariant()
    def one_closing_and_the_right_one(self) -> None:
        if not hasattr(self, "total"):
            return
        everything = self.received | self.failed == set(range(self.total))
        if not self.desk.closings:
            assert not (self.opened and everything)
            assert not (self.opened and self.failed and not self.partial)
            return
        answer = self.desk.answer()  # exactly one closing
        assert self.opened
        if self.received == set(range(self.total)):
            assert rows_in(answer) == list(range(self.total))
            assert isinstance(answer, InferResponse)
            assert not answer.parameters
        elif self.partial and self.received:
            assert rows_in(answer) == sorted(self.received)
            assert isinstance(answer, InferResponse)
            assert answer.parameters["error_code"] == self.code()
        else:
            assert isinstance(answer, ErrorResponse)
            assert answer.code == self.code()

    def code(self) -> str:
        if self.failed:
            return "inference_failed"
        assert self.is_due()
        return "deadline_exceeded" if self.deadline_ms else "incomplete_answer"


TestWindowModel = pytest.mark.slow(WindowMachine.TestCase)
TestWindowModel.settings = settings(max_examples=250, stateful_step_count=25, deadline=None)
