"""What an inference task does with a record: run it, pass it on, or answer for it.

REJECTION ------------------------------> error + dead letter
UNIT      --> one batch ----------------> an answer for each request (an error + dead letter where its rows failed)
SHARD     --> chained task: passes it on to the exchange
          --> exchange task: one batch -> PARTIAL and FAILURE to the request's window
OPENING   ------------------------------> the request's window
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from operators.backends.base import Session
from operators.core.answering import Answer, Answering, Letter
from operators.core.inference import Outcome, run_unit
from operators.core.merging import merge_rows, missing_ranges
from schemas.errors import DeadlineExceeded, InferenceFailed
from schemas.model import Catalog, ModelSpec
from schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    Kind,
    OutputSignature,
    Record,
    TensorSignature,
    decode_failure,
    decode_signature,
    decode_unit,
    encode_signature,
    kind_of,
)

STAGE = "infer"


class Shard(NamedTuple):
    """A SHARD record for the exchange."""

    value: bytes


class Part(NamedTuple):
    """An OPENING, PARTIAL or FAILURE for the window of its request, whose name is the key."""

    key: str
    value: bytes


Output = Answer | Letter | Shard | Part


def window_key(record: Record) -> str:
    """The name of a request's window: its place in Kafka, so that equal ids never meet in one window."""
    return f"{record.source.partition}-{record.source.offset}"


class Serving:
    """One inference task.

    Args:
        session_of: Gives the session of a model.
        task: The index of the task, for requests that ask where they ran.
    """

    def __init__(
        self, catalog: Catalog, session_of: Callable[[ModelSpec], Session], answering: Answering, task: int
    ) -> None:
        self._catalog = catalog
        self._session_of = session_of
        self._answering = answering
        self._task = task

    def on_record(self, encoded: bytes, now_ms: float) -> list[Output]:
        """What the chained task makes of a record from the shard operator."""
        kind = kind_of(encoded)
        if kind is Kind.UNIT:
            return self._serve_unit(decode_unit(encoded), now_ms)
        if kind is Kind.SHARD:
            return [Shard(encoded)]
        record = Record.decode(encoded)
        if kind is Kind.OPENING:
            return [Part(window_key(record), encoded)]
        return list(self._answering.fail(record, decode_failure(record.signature)))

    def on_shard(self, encoded: bytes, now_ms: float) -> list[Part]:
        """What an exchange task makes of a SHARD; nothing if its deadline has passed, for its window answers then."""
        shard = Record.decode(encoded)
        if _expired(shard, now_ms):
            return []
        [outcome] = self._run([shard])
        key = window_key(shard)
        signature = decode_signature(shard.signature)
        parts = []
        for good in outcome.good:
            outputs = tuple(TensorSignature(t.name, t.datatype, t.shape[1:]) for t in good.outputs)
            partial = replace(
                shard,
                kind=Kind.PARTIAL,
                signature=encode_signature(OutputSignature(self._task, outputs)),
                first_row=shard.first_row + good.first_row,
                rows=good.rows,
                tensors=tuple(tensor.data for tensor in good.outputs),
            )
            parts.append(Part(key, partial.encode()))
        for bad in outcome.bad:
            failure = Failure(InferenceFailed.code, bad.message, STAGE, signature.model_name, signature.model_version)
            failed = replace(
                shard,
                kind=Kind.FAILURE,
                signature=encode_signature(failure),
                first_row=shard.first_row + bad.first_row,
                rows=bad.rows,
                tensors=(),
            )
            parts.append(Part(key, failed.encode()))
        return parts

    def _serve_unit(self, requests: list[Record], now_ms: float) -> list[Output]:
        outputs: list[Output] = []
        alive = []
        for request in requests:
            if _expired(request, now_ms):
                failure = Failure(DeadlineExceeded.code, "the deadline passed before the request was run", STAGE)
                outputs += self._answering.fail(request, failure)
            else:
                alive.append(request)
        if alive:
            for request, outcome in zip(alive, self._run(alive), strict=True):
                outputs += self._answer(request, outcome)
        return outputs

    def _run(self, records: list[Record]) -> list[Outcome]:
        signature = decode_signature(records[0].signature)
        model = self._catalog.models[signature.model_name][signature.model_version]
        return run_unit(records, model, self._session_of(model))

    def _answer(self, request: Record, outcome: Outcome) -> list[Answer | Letter]:
        if not outcome.bad:
            return self._merge(request, outcome, None)
        bad = outcome.bad[0]
        rows = f"row {bad.first_row}" if bad.rows == 1 else f"rows {bad.first_row} to {bad.first_row + bad.rows - 1}"
        failure = Failure(InferenceFailed.code, f"{rows}: {bad.message}", STAGE)
        if request.partial_allowed and outcome.good:
            return self._merge(request, outcome, failure)
        return self._answering.fail(request, failure)

    def _merge(self, request: Record, outcome: Outcome, failure: Failure | None) -> list[Answer | Letter]:
        try:
            merged = merge_rows(outcome.good)
        except ValueError as error:
            return self._answering.fail(request, Failure(InferenceFailed.code, str(error), STAGE))
        if failure is None:
            return self._answering.serve(request, merged)
        missing = missing_ranges(((part.first_row, part.rows) for part in outcome.good), request.rows)
        return self._answering.serve(request, merged, missing=missing, failure=failure)


def _expired(record: Record, now_ms: float) -> bool:
    return record.deadline_ms != NO_DEADLINE_MS and record.deadline_ms <= now_ms
