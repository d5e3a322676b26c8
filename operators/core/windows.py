"""The window of one split request: it closes once, and only once.

    opening ----+                                  +--> complete: the answer
    partial ----+--> window of one request --------+--> rows failed: an error, or the rest where the request allows it
    failure ----+    (duplicates change nothing)   +--> deadline: likewise

The window itself is small, for it is written to state at every step; the records that the answer is made of are kept
by the caller. Of rows that come twice the first outcome counts: a shard that ran twice (a replay) may have failed on
other rows, and then its parts overlap. A closed window is remembered for a while, so that what comes late, or again
after a replay, changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import msgspec

from operators.core.answering import Answering
from operators.core.merging import Rows, format_ranges, insert, merge_rows, missing_ranges, overlaps
from operators.core.outputs import Answer, Letter
from schemas.errors import AnabranchError, DeadlineExceeded, IncompleteAnswer, InternalError
from schemas.ledger import Ledger
from schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    Kind,
    Record,
    Source,
    decode_failure,
    decode_output_signature,
    decode_signature,
)
from schemas.tensors import Tensor

STAGE = "aggregate"


class _Snapshot(msgspec.Struct, array_like=True):
    """What a window knows; `total_rows` is 0 until its opening has come."""

    closes_at_ms: float = 0.0
    closed: bool = False
    total_rows: int = 0
    deadline_ms: int = NO_DEADLINE_MS
    partial_allowed: bool = False
    received: list[tuple[int, int]] = []
    failed: list[tuple[int, int]] = []
    failure: Failure | None = None
    opened_at_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Snapshot)


def window_key(source: Source) -> str:
    """The name of a request's window: its place in Kafka, so that equal ids never meet in one window."""
    return f"{source.partition}-{source.offset}"


@dataclass(frozen=True, slots=True)
class Closing:
    """A window closes: what its answer is made of, beside the records that were kept.

    Attributes:
        missing: Row ranges that are not there, (first, last) both included.
        failure: Why; None for a complete answer.
        is_answerable: Whether the rows that are there become the answer, rather than the failure.
    """

    missing: list[tuple[int, int]]
    failure: Failure | None
    is_answerable: bool


class Window:
    """What is known of one split request.

    Args:
        window_timeout_ms: How long a request without a deadline may wait for its last shard.
        remember_ms: How long a closed window is remembered.
    """

    def __init__(self, window_timeout_ms: float, remember_ms: float) -> None:
        self._window_timeout_ms = window_timeout_ms
        self._remember_ms = remember_ms
        self._state = _Snapshot()

    @property
    def is_closed(self) -> bool:
        """Whether the request has been answered."""
        return self._state.closed

    @property
    def opened_at_ms(self) -> int:
        """When the first record of the window came, in Unix milliseconds."""
        return self._state.opened_at_ms

    def on_record(self, encoded: bytes, now_ms: float) -> tuple[bool, Closing | None]:
        """Takes an OPENING, PARTIAL or FAILURE in, in any order and any number of times.

        Returns:
            Whether the record is to be kept for `answer_of`; and the closing, if it closes the window.
        """
        state = self._state
        if state.closed:
            return False, None
        if not state.closes_at_ms:
            state.opened_at_ms = int(now_ms)
            state.closes_at_ms = now_ms + self._window_timeout_ms
        record = Record.decode(encoded)
        if record.kind is Kind.OPENING:
            if state.total_rows:
                return False, None
            state.total_rows = record.total_rows
            state.partial_allowed = record.partial_allowed
            state.deadline_ms = record.deadline_ms
            if record.deadline_ms != NO_DEADLINE_MS:
                state.closes_at_ms = float(record.deadline_ms)
            return True, self._close_if_done(now_ms)
        rows = (record.first_row, record.rows)
        if overlaps(state.received, *rows) or overlaps(state.failed, *rows):
            return False, None
        if record.kind is Kind.PARTIAL:
            insert(state.received, *rows)
            return True, self._close_if_done(now_ms)
        insert(state.failed, *rows)
        state.failure = state.failure or decode_failure(record.signature)
        return False, self._close_if_done(now_ms)

    def on_timer(self, now_ms: float) -> Closing | None:
        """Closes a window whose time is over."""
        state = self._state
        if state.closed or not state.total_rows or now_ms < state.closes_at_ms:
            return None
        missing = missing_ranges(state.received, state.total_rows)
        named = f"rows {format_ranges(missing)} of {state.total_rows} are missing"
        if state.deadline_ms != NO_DEADLINE_MS:
            failure = Failure(DeadlineExceeded.code, f"the deadline passed; {named}", STAGE)
        else:
            waited = f"the window closed after {self._window_timeout_ms:.0f} ms"
            failure = Failure(IncompleteAnswer.code, f"{waited}; {named}", STAGE)
        return self._close(state.failure or failure, now_ms)

    def next_deadline(self) -> float:
        """When `on_timer` is due: the closing of an open window, the end of a closed one's memory."""
        return self._state.closes_at_ms

    def is_forgotten(self, now_ms: float) -> bool:
        """Whether the window may be dropped: it was closed long ago, or its opening never came.

        The latter is what a part makes that comes after a closed window was forgotten.
        """
        return (self._state.closed or not self._state.total_rows) and now_ms >= self._state.closes_at_ms

    def snapshot(self) -> bytes:
        """The window as bytes."""
        return _encoder.encode(self._state)

    def restore(self, encoded: bytes) -> None:
        """Puts a snapshot back."""
        self._state = _decoder.decode(encoded)

    def _close_if_done(self, now_ms: float) -> Closing | None:
        state = self._state
        if not state.total_rows:
            return None  # the opening is on its way, and only it knows whom to answer
        heard = sum(rows for _, rows in state.received) + sum(rows for _, rows in state.failed)
        if heard < state.total_rows and (not state.failed or state.partial_allowed):
            return None
        return self._close(state.failure, now_ms)

    def _close(self, failure: Failure | None, now_ms: float) -> Closing:
        state = self._state
        missing = missing_ranges(state.received, state.total_rows)
        is_answerable = failure is None or (state.partial_allowed and bool(state.received))
        self._state = _Snapshot(now_ms + self._remember_ms, closed=True, opened_at_ms=state.opened_at_ms)
        return Closing(missing, failure, is_answerable)


def answer_of(closing: Closing, kept: Sequence[bytes], answering: Answering) -> list[Answer | Letter]:
    """What a closed window says to the outside; never raises for what a model put out.

    Args:
        kept: The records that the window had the caller keep.
    """
    records = [Record.decode(encoded) for encoded in kept]
    opening = next(record for record in records if record.kind is Kind.OPENING)
    if not closing.is_answerable and closing.failure is not None:
        return answering.fail(opening, closing.failure)
    try:
        return _serve(opening, [each for each in records if each.kind is Kind.PARTIAL], closing, answering)
    except AnabranchError as error:
        return answering.fail(opening, Failure(error.code, error.message, STAGE))
    except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
        return answering.fail(opening, Failure(InternalError.code, f"{type(error).__name__}: {error}", STAGE))


def _serve(
    opening: Record, partials: Sequence[Record], closing: Closing, answering: Answering
) -> list[Answer | Letter]:
    parts = [_rows_of(record) for record in partials]
    merged = merge_rows([rows for _, rows in parts])
    ledger = _ledger(opening, partials, answering.now_ms())
    outputs = answering.serve(
        opening,
        merged,
        stage=STAGE,
        missing=closing.missing,
        failure=closing.failure,
        shards=len(parts),
        tasks=len({task for task, _ in parts}),
        ledger=ledger,
    )
    if closing.failure is None:
        signature = decode_signature(opening.signature)
        answering.meter.note_split(signature, opening.total_rows, ledger, answering.now_ms())
    return outputs


def _ledger(opening: Record, partials: Sequence[Record], merged_ms: float) -> Ledger:
    taken_ms, started_ms, ended_ms = max((partial.times_ms for partial in partials), key=itemgetter(-1))
    read_ms, admitted_ms = opening.times_ms
    sent_ms = opening.source.timestamp_ms if opening.source.timestamp_ms >= 0 else read_ms
    return Ledger(sent_ms, read_ms, admitted_ms, taken_ms, started_ms, ended_ms, merged_ms)


def _rows_of(record: Record) -> tuple[int, Rows]:
    signature = decode_output_signature(record.signature)
    outputs = tuple(
        Tensor(spec.name, spec.datatype, (record.rows, *spec.shape), data)
        for spec, data in zip(signature.outputs, record.tensors, strict=True)
    )
    return signature.task, Rows(record.first_row, record.rows, outputs)
