"""The window of one split request, which closes exactly once.

It closes when all rows arrived, when failed rows decide the answer, or at the deadline. State holds the window, the
caller the records for the answer. The first outcome of a row counts. A closed window is forgotten when the outcomes of
all rows arrived, or after `remember_ms`. The records of a restored one may come again.

An ensemble counts as several times the rows, member after member. The answer uses the complete members if they
suffice, else the rows that all members have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.merging.ensemble import merge_members
from anabranch.operators.core.merging.row_ranges import (
    RowBlock,
    format_ranges,
    insert,
    merge_rows,
    missing_ranges,
    not_covered,
    select_rows,
)
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.requests import undecodable
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.errors import AnabranchError, DeadlineExceeded, IncompleteAnswer, InternalError
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.model import Ensemble
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    RecordKind,
    Source,
    decode_record,
    salvage_opening,
    salvage_segments,
)
from anabranch.schemas.records_v1 import read_kept_record
from anabranch.schemas.signatures import (
    Failure,
    decode_opening_signature,
    decode_output_signature,
    decode_signature,
)
from anabranch.schemas.tensors import Buffer, Tensor

PHASE = "aggregate"


class _Snapshot(msgspec.Struct, array_like=True):
    """State of a window; `total_rows` is 0 before the opening.

    A closed window has the rows of all members in `total_rows`, and those with an outcome in `received`. Earlier
    releases wrote closed windows with a `total_rows` of 0.
    """

    closes_at_ms: float = 0.0
    closed: bool = False
    total_rows: int = 0
    deadline_ms: int = NO_DEADLINE_MS
    partial_allowed: bool = False
    received: list[tuple[int, int]] = []
    failed: list[tuple[int, int]] = []
    failure: Failure | None = None
    opened_at_ms: int = 0
    members: tuple[str, ...] = ()
    needed: int = 1
    run: int = 0


#: First byte of a snapshot; version 1 began with a MessagePack array of 11, version 2 had no `run`.
SNAPSHOT_VERSION = 3
_VERSIONS = (2, SNAPSHOT_VERSION)
_VERSION_1_MARK = 0x9B
_VERSION_BYTE = bytes((SNAPSHOT_VERSION,))
_OPENING = bytes((RecordKind.OPENING,))
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Snapshot)


def window_key(source: Source) -> str:
    """Name a window by its record in Kafka, because ids may repeat.

    The timestamp tells records apart that have the same place in a topic which was deleted and made anew.
    """
    return f"{source.partition}-{source.offset}-{source.timestamp_ms}"


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a window.

    Attributes:
        missing: Inclusive ranges of missing rows.
        failure: None for a complete answer.
        is_answerable: True to answer with the rows at hand, False with the failure.
        members: Indices of the members in the answer; 0 for a plain model.
    """

    missing: list[tuple[int, int]]
    failure: Failure | None
    is_answerable: bool
    members: list[int]


class Window:
    """State of one split request.

    Args:
        defects: Gets undecodable records.
        run: See `Aggregator`.
    """

    def __init__(self, policy: SchedulingPolicy, defects: Defects | None = None, run: int = 0) -> None:
        self._run = run
        self._defects = defects or Defects(Meter())
        self._window_timeout_ms = policy.window_timeout_ms
        self._remember_ms = policy.remember_ms
        self._state = _Snapshot()

    @property
    def is_closed(self) -> bool:
        """True after the request was answered."""
        return self._state.closed

    @property
    def opened_at_ms(self) -> int:
        """Unix time of the first record."""
        return self._state.opened_at_ms

    def on_record(self, encoded: Buffer, now_ms: float) -> tuple[Buffer | None, Closing | None]:
        """Take an OPENING, PARTIAL or FAILURE, in any order and repeatedly; never raises.

        A damaged record fails its readable rows, and a damaged OPENING its request.

        Returns:
            The record to keep for `answer_of`, and the closing if the window closes.
        """
        state = self._state
        if state.closed:
            self._note_late(encoded)
            return None, None
        if not state.closes_at_ms:
            state.opened_at_ms, state.run = int(now_ms), self._run
            state.closes_at_ms = now_ms + self._window_timeout_ms
        try:
            record, ensemble = _decode(encoded)
        except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
            self._defects.note("merge", error, f"undecodable record of {len(encoded)} bytes at a window")
            return self._on_damaged(encoded, undecodable(error, PHASE), now_ms)
        return self._on_decoded(record, ensemble, encoded, now_ms)

    def _on_damaged(self, encoded: Buffer, failure: Failure, now_ms: float) -> tuple[Buffer | None, Closing | None]:
        opening = salvage_opening(encoded)
        if opening is None:
            segments = salvage_segments(encoded)
            if len(segments) != 1:
                return None, None
            return self._on_decoded(FailureRecord(segments[0], failure), None, b"", now_ms)
        state = self._state
        if state.total_rows:
            return None, None
        state.total_rows = opening.segment.total_rows
        return opening.encode(), self._close(failure, now_ms)

    def _on_decoded(
        self,
        record: OpeningRecord | PartialRecord | FailureRecord,
        ensemble: Ensemble | None,
        encoded: Buffer,
        now_ms: float,
    ) -> tuple[Buffer | None, Closing | None]:
        state, segment = self._state, record.segment
        if isinstance(record, OpeningRecord):
            if state.total_rows:
                return None, None
            if ensemble is not None:
                state.members, state.needed = ensemble.labels, ensemble.needed
            state.total_rows = segment.total_rows
            state.partial_allowed = record.partial_allowed
            state.deadline_ms = segment.deadline_ms
            if segment.deadline_ms != NO_DEADLINE_MS:
                state.closes_at_ms = float(segment.deadline_ms)
            return encoded, self._close_if_done(now_ms)
        first_row = segment.member * segment.total_rows + segment.first_row
        not_received = not_covered(state.received, first_row, segment.rows)
        new = [rows for some in not_received for rows in not_covered(state.failed, *some)]
        if not new:
            return None, None
        is_good = isinstance(record, PartialRecord)
        for rows in new:
            insert(state.received if is_good else state.failed, *rows)
        if isinstance(record, FailureRecord):
            state.failure = state.failure or record.failure
        return encoded if is_good else None, self._close_if_done(now_ms)

    def _note_late(self, encoded: Buffer) -> None:
        state = self._state
        if not state.total_rows or encoded[:1] == _OPENING:
            return
        for segment in salvage_segments(encoded):
            first_row = segment.member * segment.total_rows + segment.first_row
            for rows in not_covered(state.received, first_row, segment.rows):
                insert(state.received, *rows)

    def on_timer(self, now_ms: float) -> Closing | None:
        """Close the window if its time is over."""
        state = self._state
        if state.closed or not state.total_rows or now_ms < state.closes_at_ms:
            return None
        named = self._name_missing()
        if state.deadline_ms != NO_DEADLINE_MS:
            failure = Failure(
                DeadlineExceeded.code, f"the deadline passed, {named}: raise the request's timeout", PHASE
            )
        else:
            waited = f"the window closed after {self._window_timeout_ms:.0f} ms"
            failure = Failure(IncompleteAnswer.code, f"{waited}, {named}: raise scheduling.window_timeout_ms", PHASE)
        return self._close(state.failure or failure, now_ms)

    def next_deadline(self) -> float:
        """Return the time at which the window closes, or is forgotten."""
        return self._state.closes_at_ms

    def is_forgotten(self, now_ms: float) -> bool:
        """Return True if the window may be removed."""
        state = self._state
        is_whole = state.closed and 0 < state.total_rows <= sum([rows for _, rows in state.received])
        if is_whole and state.run == self._run:
            return True  # Nothing of it can come.
        return (state.closed or not state.total_rows) and now_ms >= state.closes_at_ms

    def snapshot(self) -> bytes:
        """Encode the window for state."""
        return _VERSION_BYTE + _encoder.encode(self._state)

    def restore(self, encoded: bytes) -> None:
        """Restore a snapshot.

        Raises:
            ValueError: Another version, or damaged bytes.
        """
        if encoded[0] in _VERSIONS:
            self._state = _decoder.decode(encoded[1:])
        elif encoded[0] == _VERSION_1_MARK:
            self._state = _decoder.decode(encoded)
        else:
            raise ValueError(f"a window snapshot of version {encoded[0]}, expected 1 to {SNAPSHOT_VERSION}")

    def _close_if_done(self, now_ms: float) -> Closing | None:
        state = self._state
        if not state.total_rows:
            return None  # Only the opening has the sender.
        heard = sum(rows for _, rows in state.received) + sum(rows for _, rows in state.failed)
        if heard < state.total_rows * max(1, len(state.members)) and (not state.failed or self._may_get_better()):
            return None
        return self._close(state.failure, now_ms)

    def _may_get_better(self) -> bool:
        """Return True if pending rows can change the answer."""
        state = self._state
        complete, gaps = self._find_gaps()
        failed = {
            member
            for first_row, rows in state.failed  # Neighbours are joined, also of several members.
            for member in range(first_row // state.total_rows, (first_row + rows - 1) // state.total_rows + 1)
        }
        waited_for = {member for member, _, _ in gaps} - failed
        if len(complete) >= state.needed:
            return bool(waited_for)
        return state.partial_allowed or len(complete) + len(waited_for) >= state.needed

    def _close(self, failure: Failure | None, now_ms: float) -> Closing:
        state = self._state
        complete, gaps = self._find_gaps()
        missing: list[tuple[int, int]] = []
        members = complete
        is_answerable = len(complete) >= state.needed
        if not is_answerable:
            members = list(range(max(1, len(state.members))))
            there = missing_ranges([(first, rows) for _, first, rows in gaps], state.total_rows)
            missing = missing_ranges([(first, last + 1 - first) for first, last in there], state.total_rows)
            is_answerable = state.partial_allowed and bool(there)
        if state.members and failure is not None and failure.model_name:
            failure = Failure(failure.code, f"member {failure.model_name}: {failure.message}", failure.stage)
        for rows in state.failed:
            insert(state.received, *rows)
        self._state = _Snapshot(
            now_ms + self._remember_ms,
            closed=True,
            total_rows=state.total_rows * max(1, len(state.members)),
            received=state.received,
            opened_at_ms=state.opened_at_ms,
            run=state.run,
        )
        return Closing(missing, failure, is_answerable, members)

    def _find_gaps(self) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Return the complete members, and (member, first row, rows) of pending rows."""
        state = self._state
        members, gaps = range(max(1, len(state.members))), []
        for first, last in missing_ranges(state.received, state.total_rows * len(members)):
            for member in range(first // state.total_rows, last // state.total_rows + 1):
                start = member * state.total_rows
                begin, end = max(first, start), min(last + 1, start + state.total_rows)
                gaps.append((member, begin - start, end - begin))
        incomplete = {member for member, _, _ in gaps}
        return [member for member in members if member not in incomplete], gaps

    def _name_missing(self) -> str:
        state = self._state
        complete, gaps = self._find_gaps()
        if state.members:
            late = [name for member, name in enumerate(state.members) if member not in complete]
            return f"members {', '.join(late)} are not complete"
        missing = [(first_row, first_row + rows - 1) for _, first_row, rows in gaps]
        return f"rows {format_ranges(missing)} of {state.total_rows} are missing"


def _decode(encoded: Buffer) -> tuple[OpeningRecord | PartialRecord | FailureRecord, Ensemble | None]:
    record = decode_record(encoded)
    if isinstance(record, OpeningRecord):
        return record, decode_opening_signature(record.signature).ensemble
    if not isinstance(record, PartialRecord | FailureRecord):
        raise ValueError(f"a {record.kind.name} at a window, expected OPENING, PARTIAL or FAILURE")  # noqa: TRY004 - bytes
    return record, None


def answer_of(
    closing: Closing, kept: Sequence[bytes], response_writer: ResponseWriter
) -> list[Answer | DeadLetterRecord]:
    """Write the answer of a closed window from its kept records; never raises."""
    records = [read_kept_record(encoded) for encoded in kept]
    opening = next(record for record in records if isinstance(record, OpeningRecord))
    if not closing.is_answerable and closing.failure is not None:
        return response_writer.fail(opening, closing.failure)
    try:
        return _serve(opening, [each for each in records if isinstance(each, PartialRecord)], closing, response_writer)
    except AnabranchError as error:
        return response_writer.fail(opening, Failure(error.code, error.message, PHASE))
    except Exception as error:  # noqa: BLE001 - a defect must not kill the job
        response_writer.defects.note("merge", error, f"request {opening.id!r}")
        return response_writer.fail(opening, Failure(InternalError.code, f"{type(error).__name__}: {error}", PHASE))


def _serve(
    opening: OpeningRecord, partials: Sequence[PartialRecord], closing: Closing, response_writer: ResponseWriter
) -> list[Answer | DeadLetterRecord]:
    ensemble = decode_opening_signature(opening.signature).ensemble
    if ensemble is None:
        merged = merge_rows(_rows_once([_rows_of(record) for record in partials], closing.missing))
    else:
        merged = merge_members(ensemble, _outputs_by_member(partials, closing))
    breakdown = _breakdown(opening, partials, response_writer.now_ms())
    outputs = response_writer.answer(
        opening,
        merged,
        phase=PHASE,
        missing=closing.missing,
        missing_members=_missing_members(ensemble, closing),
        failure=closing.failure,
        shards=len(partials),
        tasks=len({decode_output_signature(record.outputs).task for record in partials}),
        breakdown=breakdown,
    )
    if closing.failure is None:
        signature = decode_signature(opening.signature)
        response_writer.meter.note_split(signature, opening.segment.total_rows, breakdown, response_writer.now_ms())
    return outputs


def _breakdown(opening: OpeningRecord, partials: Sequence[PartialRecord], merged_ms: float) -> LatencyBreakdown:
    last = max(partials, key=attrgetter("ended_ms"))
    read_ms, sent_ms = opening.read_ms, opening.source.timestamp_ms
    return LatencyBreakdown(
        sent_ms if sent_ms >= 0 else read_ms,
        read_ms,
        opening.admitted_ms,
        last.taken_ms,
        last.started_ms,
        last.ended_ms,
        merged_ms,
    )


def _rows_of(record: PartialRecord) -> RowBlock:
    rows = () if record.is_whole else (record.segment.rows,)
    outputs = tuple(
        Tensor(spec.name, spec.datatype, rows + spec.shape, data)
        for spec, data in zip(decode_output_signature(record.outputs).outputs, record.tensors, strict=True)
    )
    return RowBlock(record.segment.first_row, record.segment.rows, outputs)


def _rows_once(parts: Sequence[RowBlock], missing: Sequence[tuple[int, int]]) -> list[RowBlock]:
    taken = [(first, last + 1 - first) for first, last in missing]
    once: list[RowBlock] = []
    for part in parts:
        new = not_covered(taken, part.first_row, part.rows)
        if new == [(part.first_row, part.rows)]:
            once.append(part)
        elif new:
            once += select_rows(part, [(first, first + rows - 1) for first, rows in new])
        for rows in new:
            insert(taken, *rows)
    return once


def _outputs_by_member(partials: Sequence[PartialRecord], closing: Closing) -> list[tuple[int, tuple[Tensor, ...]]]:
    parts: dict[int, list[RowBlock]] = {member: [] for member in closing.members}
    for record in partials:
        if record.segment.member in parts:
            parts[record.segment.member].append(_rows_of(record))
    return [(member, merge_rows(_rows_once(rows, closing.missing))) for member, rows in parts.items()]


def _missing_members(ensemble: Ensemble | None, closing: Closing) -> list[str]:
    labels = () if ensemble is None else ensemble.labels
    return [label for member, label in enumerate(labels) if member not in closing.members]
