"""What an inference task does with a record: run it, pass it on, or answer for it.

REJECTION ------------------------------> error + dead letter
UNIT      --> one batch ----------------> an answer for each request (an error + dead letter where its rows failed)
SHARD     --> chained task: passes it on to the exchange
          --> exchange task: one batch -> PARTIAL and FAILURE to the request's window
OPENING   ------------------------------> the request's window

Nothing here raises: a defect of ours, or a model that an upgrade took out of the catalog while its requests waited, is
the answer to the requests concerned, and to no other.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from operators.backends.base import Session
from operators.core.answering import Answer, Answering, Letter
from operators.core.inference import Bad, Outcome, run_unit
from operators.core.merging import merge_rows, missing_ranges
from schemas.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InternalError,
    ServingError,
    UnknownModel,
    UnknownVersion,
)
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
        """What the chained task makes of a record from the shard operator; never raises."""
        try:
            return self._serve(encoded, now_ms)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
            return self._answer_for_defect(encoded, error)

    def _serve(self, encoded: bytes, now_ms: float) -> list[Output]:
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
        """What an exchange task makes of a SHARD; never raises.

        Nothing if its deadline has passed, or where it is no record of ours: its window answers when its time is over.
        """
        try:
            shard = Record.decode(encoded)
        except Exception:  # noqa: BLE001 - no record, whatever else it is
            return []
        if _expired(shard, now_ms):
            return []
        try:
            return self._run_shard(shard)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
            return [_failed(shard, 0, shard.rows, _failure_of(error))]

    def _run_shard(self, shard: Record) -> list[Part]:
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
            message = _at_rows(shard.first_row + bad.first_row, bad)
            failure = Failure(InferenceFailed.code, message, STAGE, signature.model_name, signature.model_version)
            parts.append(_failed(shard, bad.first_row, bad.rows, failure))
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
        return outputs + self._answer_all(alive) if alive else outputs

    def _answer_all(self, requests: list[Record]) -> list[Output]:
        try:
            outputs: list[Output] = []
            for request, outcome in zip(requests, self._run(requests), strict=True):
                outputs += self._answer(request, outcome)
        except Exception as error:  # noqa: BLE001 - whatever it is, only who is concerned may hear of it
            if len(requests) == 1:
                return list(self._answering.fail(requests[0], _failure_of(error)))
            return [output for request in requests for output in self._answer_all([request])]
        return outputs

    def _answer_for_defect(self, encoded: bytes, error: Exception) -> list[Output]:
        try:
            return list(self._answering.fail(Record.decode(encoded), _failure_of(error)))
        except Exception:  # noqa: BLE001 - no record of ours: nobody to answer, but nothing may be lost
            return [self._answering.bury(encoded, _failure_of(error))]

    def _run(self, records: list[Record]) -> list[Outcome]:
        signature = decode_signature(records[0].signature)
        model = self._catalog.find(signature.model_name, signature.model_version)
        return run_unit(records, model, self._session_of(model))

    def _answer(self, request: Record, outcome: Outcome) -> list[Answer | Letter]:
        if not outcome.bad:
            return self._merge(request, outcome, None)
        bad = outcome.bad[0]
        failure = Failure(InferenceFailed.code, _at_rows(bad.first_row, bad), STAGE)
        if request.partial_allowed and outcome.good:
            return self._merge(request, outcome, failure)
        return self._answering.fail(request, failure)

    def _merge(self, request: Record, outcome: Outcome, failure: Failure | None) -> list[Answer | Letter]:
        try:
            merged = merge_rows(outcome.good)
        except InferenceFailed as error:
            return self._answering.fail(request, _failure_of(error))
        if failure is None:
            return self._answering.serve(request, merged)
        missing = missing_ranges(((part.first_row, part.rows) for part in outcome.good), request.rows)
        return self._answering.serve(request, merged, missing=missing, failure=failure)


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, ServingError | UnknownModel | UnknownVersion):
        return Failure(error.code, error.message, STAGE)
    # Whatever else it is, the sender is not at fault: admission found nothing wrong.
    return Failure(InternalError.code, f"{type(error).__name__}: {error}", STAGE)


def _at_rows(first_row: int, bad: Bad) -> str:
    rows = f"row {first_row}" if bad.rows == 1 else f"rows {first_row} to {first_row + bad.rows - 1}"
    return f"{rows}: {bad.message}"


def _failed(shard: Record, first_row: int, rows: int, failure: Failure) -> Part:
    signature = encode_signature(failure)
    first_row += shard.first_row
    failed = replace(shard, kind=Kind.FAILURE, signature=signature, first_row=first_row, rows=rows, tensors=())
    return Part(window_key(shard), failed.encode())


def _expired(record: Record, now_ms: float) -> bool:
    return record.deadline_ms != NO_DEADLINE_MS and record.deadline_ms <= now_ms
