"""The window of one split request: it closes once, and only once.

    opening ----+                                  +--> complete: the answer
    partial ----+--> window of one request --------+--> rows failed: an error, or the rest where the request allows it
    failure ----+    (duplicates change nothing)   +--> deadline: likewise

A closed window is remembered for a while, so that what comes late, or again after a replay, changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from operators.core.answering import Answer, Answering, Letter
from operators.core.merging import Rows, format_ranges, merge_rows, missing_ranges
from schemas.errors import DeadlineExceeded, IncompleteAnswer, InferenceFailed
from schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    Kind,
    Record,
    decode_failure,
    decode_output_signature,
)
from schemas.tensors import Tensor

STAGE = "aggregate"


class _Snapshot(msgspec.Struct, array_like=True):
    opening: bytes
    received: list[tuple[int, int]]
    failed: list[tuple[int, int]]
    failure: Failure | None
    closes_at_ms: float
    closed: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Snapshot)


@dataclass(frozen=True, slots=True)
class Closing:
    """A window closes: what its answer is made of.

    Attributes:
        opening: The request, with its original.
        missing: Row ranges that are not there, (first, last) both included.
        failure: Why; None for a complete answer.
    """

    opening: Record
    missing: list[tuple[int, int]]
    failure: Failure | None

    @property
    def is_answerable(self) -> bool:
        """Whether the rows that are there become the answer, rather than the failure."""
        return self.failure is None or (
            self.opening.partial_allowed and sum(b - a + 1 for a, b in self.missing) < self.opening.total_rows
        )


class Window:
    """What is known of one split request; the partials themselves are kept by the caller.

    Args:
        window_timeout_ms: How long a request without a deadline may wait for its last shard.
        remember_ms: How long a closed window is remembered.
    """

    def __init__(self, window_timeout_ms: float, remember_ms: float) -> None:
        self._window_timeout_ms = window_timeout_ms
        self._remember_ms = remember_ms
        self._state = _Snapshot(b"", [], [], None, 0.0, False)

    @property
    def is_closed(self) -> bool:
        """Whether the request has been answered."""
        return self._state.closed

    def on_record(self, encoded: bytes, now_ms: float) -> tuple[bool, Closing | None]:
        """Takes an OPENING, PARTIAL or FAILURE in, in any order and any number of times.

        Returns:
            Whether the record is a partial to keep for the merge; and the closing, if it closes the window.
        """
        state = self._state
        if state.closed:
            return False, None
        if not state.closes_at_ms:
            state.closes_at_ms = now_ms + self._window_timeout_ms
        record = Record.decode(encoded)
        keep = False
        if record.kind is Kind.OPENING:
            if not state.opening:
                state.opening = encoded
                if record.deadline_ms != NO_DEADLINE_MS:
                    state.closes_at_ms = record.deadline_ms
        else:
            rows = (record.first_row, record.rows)
            if rows in state.received or rows in state.failed:
                return False, None
            if record.kind is Kind.PARTIAL:
                state.received.append(rows)
                keep = True
            else:
                state.failed.append(rows)
                state.failure = state.failure or decode_failure(record.signature)
        return keep, self._close_if_done(now_ms)

    def on_timer(self, now_ms: float) -> Closing | None:
        """Closes a window whose time is over."""
        state = self._state
        if state.closed or not state.opening or now_ms < state.closes_at_ms:
            return None
        opening = Record.decode(state.opening)
        missing = missing_ranges(state.received, opening.total_rows)
        named = f"rows {format_ranges(missing)} of {opening.total_rows} are missing"
        if opening.deadline_ms != NO_DEADLINE_MS:
            failure = Failure(DeadlineExceeded.code, f"the deadline passed; {named}", STAGE)
        else:
            waited = f"the window closed after {self._window_timeout_ms:.0f} ms"
            failure = Failure(IncompleteAnswer.code, f"{waited}; {named}", STAGE)
        return self._close(Closing(opening, missing, state.failure or failure), now_ms)

    def next_deadline(self) -> float:
        """When `on_timer` is due: the closing of an open window, the end of a closed one's memory."""
        return self._state.closes_at_ms

    def is_forgotten(self, now_ms: float) -> bool:
        """Whether a closed window may be dropped."""
        return self._state.closed and now_ms >= self._state.closes_at_ms

    def snapshot(self) -> bytes:
        """The window as bytes."""
        return _encoder.encode(self._state)

    def restore(self, encoded: bytes) -> None:
        """Puts a snapshot back."""
        self._state = _decoder.decode(encoded)

    def _close_if_done(self, now_ms: float) -> Closing | None:
        state = self._state
        if not state.opening:
            return None  # the opening is on its way, and only it knows whom to answer
        opening = Record.decode(state.opening)
        if state.failed and not opening.partial_allowed:
            missing = missing_ranges(state.received, opening.total_rows)
            return self._close(Closing(opening, missing, state.failure), now_ms)
        if missing_ranges(state.received + state.failed, opening.total_rows):
            return None
        missing = missing_ranges(state.received, opening.total_rows)
        return self._close(Closing(opening, missing, state.failure), now_ms)

    def _close(self, closing: Closing, now_ms: float) -> Closing:
        self._state = _Snapshot(b"", [], [], None, now_ms + self._remember_ms, True)
        return closing


def answer_of(closing: Closing, partials: Sequence[bytes], answering: Answering) -> list[Answer | Letter]:
    """What a closed window says to the outside.

    Args:
        partials: The PARTIAL records that the window had the caller keep.
    """
    if not closing.is_answerable and closing.failure is not None:
        return answering.fail(closing.opening, closing.failure)
    parts = [_rows_of(encoded) for encoded in partials]
    try:
        outputs = merge_rows([rows for _, rows in parts])
    except ValueError as error:
        return answering.fail(closing.opening, Failure(InferenceFailed.code, str(error), STAGE))
    return answering.serve(
        closing.opening,
        outputs,
        missing=closing.missing,
        failure=closing.failure,
        shards=len(parts),
        tasks=len({task for task, _ in parts}),
    )


def _rows_of(encoded: bytes) -> tuple[int, Rows]:
    record = Record.decode(encoded)
    signature = decode_output_signature(record.signature)
    outputs = tuple(
        Tensor(spec.name, spec.datatype, (record.rows, *spec.shape), data)
        for spec, data in zip(signature.outputs, record.tensors, strict=True)
    )
    return signature.task, Rows(record.first_row, record.rows, outputs)
