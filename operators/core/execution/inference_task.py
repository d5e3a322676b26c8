"""What an inference task does: runs a batch, and answers, or hands rows on to the window of their request.

    batch of requests  --> an answer for each request (an error + dead letter where its rows failed)
    BATCH              --> the same, for requests that another task read
    SHARD              --> PARTIAL and FAILURE to the request's window

Nothing here raises: a defect of ours, or a model that an upgrade took out of the catalog, is the answer to the requests
concerned, and to no other.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from anabranch.operators.backends.base import Session
from anabranch.operators.core.execution.batch_run import BatchRun, FailedRows, PartOutcome
from anabranch.operators.core.execution.batch_transfer import unpack
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.row_ranges import merge_rows, missing_ranges
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.schemas.batches import BatchRecord
from anabranch.schemas.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InternalError,
    ServingError,
    UnknownModel,
    UnknownVersion,
)
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    OutputSignature,
    Record,
    RecordKind,
    Signature,
    TensorSignature,
    decode_signature,
    encode_signature,
)
from anabranch.schemas.tensors import Buffer

STAGE = "infer"
_BATCH = bytes([RecordKind.BATCH])


class InferenceTask:
    """One inference task.

    Args:
        session_of: Gives the session of a model.
        task: The index of the task, for requests that ask where they ran.
        pack: What makes the outputs of a shard ready for their way to another task.
    """

    def __init__(
        self,
        catalog: Catalog,
        session_of: Callable[[ModelSpec], Session],
        response_writer: ResponseWriter,
        task: int,
        pack: Callable[[Record], bytes] = Record.encode,
    ) -> None:
        self._catalog = catalog
        self._session_of = session_of
        self._response_writer = response_writer
        self._defects = response_writer.defects
        self._task = task
        self._pack = pack

    def on_batch(
        self, requests: Sequence[Request], taken_ms: float, joined: Sequence[Buffer] = ()
    ) -> list[Answer | DeadLetterRecord]:
        """Answers requests of one signature; never raises.

        Args:
            requests: Not expired.
            taken_ms: Now, in Unix time.
            joined: The tensors of all of them, where they are together already.
        """
        try:
            signature = decode_signature(requests[0].signature)
            batch = self._run(requests, signature, joined)
            for request in requests:
                if request.breakdown is not None:
                    breakdown = request.breakdown
                    breakdown.taken_ms, breakdown.started_ms, breakdown.ended_ms = (
                        taken_ms,
                        batch.started_ms,
                        batch.ended_ms,
                    )
                    breakdown.merged_ms = batch.ended_ms
            outputs: list[Answer | DeadLetterRecord] = []
            served = requests
            if batch.whole is not None:
                outputs = self._response_writer.serve_batch(
                    requests, signature, batch.whole, stage=STAGE, task=self._task
                )
            else:
                for request, outcome in zip(requests, batch.outcomes(), strict=True):
                    outputs += self._answer(request, outcome)
                served = [each for each, outcome in zip(requests, batch.outcomes(), strict=True) if not outcome.bad]
            self._response_writer.meter.note_batch(
                signature,
                served,
                taken_ms=taken_ms,
                started_ms=batch.started_ms,
                ended_ms=batch.ended_ms,
                written_ms=self._response_writer.now_ms(),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, only who is concerned may hear of it
            if len(requests) == 1:
                failure = self._failure_of(error, f"request {requests[0].id!r}")
                return self._response_writer.fail(requests[0], failure)
            return [output for request in requests for output in self.on_batch([request], taken_ms)]
        return outputs

    def on_exchange(self, encoded: Buffer, now_ms: float) -> Sequence[Answer | DeadLetterRecord | WindowPart]:
        """What an exchange task makes of a SHARD or a BATCH; never raises.

        Args:
            encoded: Where it is no record of ours, nothing comes of it.
            now_ms: Unix time.
        """
        is_batch = encoded[:1] == _BATCH
        return self.on_travelled(encoded, now_ms) if is_batch else self.on_shard(encoded, now_ms)

    def on_travelled(self, encoded: Buffer, now_ms: float) -> list[Answer | DeadLetterRecord]:
        """Answers the requests of a BATCH, and runs what has not expired on its way; never raises."""
        try:
            batch = BatchRecord.decode(encoded)
            requests = unpack(batch)
        except Exception as error:  # noqa: BLE001 - anything may be wrong with the bytes
            self._defects.note("batch", error, f"undecodable BATCH of {len(encoded)} bytes")
            return []
        alive = [each for each in requests if each.deadline_ms == NO_DEADLINE_MS or each.deadline_ms > now_ms]
        if len(alive) == len(requests):
            return self.on_batch(requests, now_ms, batch.tensors)
        late = Failure(DeadlineExceeded.code, "the deadline passed on the way to another task", STAGE)
        outputs: list[Answer | DeadLetterRecord] = []
        for request in requests:
            if request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms <= now_ms:
                outputs += self._response_writer.fail(request, late)
        return outputs + self.on_batch(alive, now_ms) if alive else outputs

    def on_shard(self, encoded: Buffer, now_ms: float) -> list[WindowPart]:
        """What an exchange task makes of a SHARD; never raises.

        A FAILURE, which a shard became on its way, is handed on. Nothing is, if its deadline has passed, or where it is
        no record of ours: its window answers when its time is over.
        """
        try:
            shard = Record.decode(encoded)
        except Exception as error:  # noqa: BLE001 - anything may be wrong with the bytes
            self._defects.note("batch", error, f"undecodable SHARD of {len(encoded)} bytes")
            return []
        if shard.deadline_ms != NO_DEADLINE_MS and shard.deadline_ms <= now_ms:
            return []
        if shard.kind is RecordKind.FAILURE:
            return [WindowPart(window_key(shard.source), bytes(encoded))]
        try:
            return self._run_shard(shard, now_ms)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
            return [_failed(shard, 0, shard.rows, self._failure_of(error, f"shard of request {shard.id!r}"))]

    def _run_shard(self, shard: Record, taken_ms: float) -> list[WindowPart]:
        signature = decode_signature(shard.signature)
        batch = self._run([shard], signature)
        [outcome] = batch.outcomes()
        times_ms = (taken_ms, batch.started_ms, batch.ended_ms)
        key = window_key(shard.source)
        parts = []
        for good in outcome.good:
            outputs = tuple(
                TensorSignature(t.name, t.datatype, t.shape[1:] if batch.is_by_row else t.shape) for t in good.outputs
            )
            partial = replace(
                shard,
                kind=RecordKind.PARTIAL,
                signature=encode_signature(OutputSignature(self._task, outputs)),
                first_row=shard.first_row + good.first_row,
                rows=good.rows,
                tensors=tuple(tensor.data for tensor in good.outputs),
                times_ms=times_ms,
                is_whole=not batch.is_by_row,
            )
            parts.append(WindowPart(key, self._pack(partial)))
        for bad in outcome.bad:
            # Members of an ensemble count on.
            message = _at_rows(shard.first_row % shard.total_rows + bad.first_row, bad)
            failure = Failure(InferenceFailed.code, message, STAGE, signature.model_name, signature.model_version)
            parts.append(_failed(shard, bad.first_row, bad.rows, failure))
        return parts

    def _run(self, parts: Sequence[Request | Record], signature: Signature, joined: Sequence[Buffer] = ()) -> BatchRun:
        model = self._catalog.find(signature.model_name, signature.model_version)
        return BatchRun(parts, signature, model, self._session_of(model), self._response_writer.now_ms, joined)

    def _answer(self, request: Request, outcome: PartOutcome) -> list[Answer | DeadLetterRecord]:
        if not outcome.bad:
            return self._merge(request, outcome, None)
        bad = outcome.bad[0]
        failure = Failure(InferenceFailed.code, _at_rows(bad.first_row, bad), STAGE)
        if request.partial_allowed and outcome.good:
            return self._merge(request, outcome, failure)
        return self._response_writer.fail(request, failure)

    def _merge(
        self, request: Request, outcome: PartOutcome, failure: Failure | None
    ) -> list[Answer | DeadLetterRecord]:
        try:
            merged = merge_rows(outcome.good)
        except InferenceFailed as error:
            return self._response_writer.fail(request, _failure_of(error))
        if failure is None:
            return self._response_writer.serve(
                request, merged, stage=STAGE, task=self._task, breakdown=request.breakdown
            )
        missing = missing_ranges(((part.first_row, part.rows) for part in outcome.good), request.rows)
        return self._response_writer.serve(
            request,
            merged,
            stage=STAGE,
            missing=missing,
            failure=failure,
            task=self._task,
            breakdown=request.breakdown,
        )

    def _failure_of(self, error: Exception, detail: str) -> Failure:
        failure = _failure_of(error)
        if failure.code == InternalError.code:
            self._defects.note("batch", error, detail)
        return failure


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, ServingError | UnknownModel | UnknownVersion):
        return Failure(error.code, error.message, STAGE)
    # Whatever else it is, the sender is not at fault: admission found nothing wrong.
    return Failure(InternalError.code, f"{type(error).__name__}: {error}", STAGE)


def _at_rows(first_row: int, bad: FailedRows) -> str:
    rows = f"row {first_row}" if bad.rows == 1 else f"rows {first_row} to {first_row + bad.rows - 1}"
    return f"{rows}: {bad.message}"


def _failed(shard: Record, first_row: int, rows: int, failure: Failure) -> WindowPart:
    signature = encode_signature(failure)
    first_row += shard.first_row
    failed = replace(shard, kind=RecordKind.FAILURE, signature=signature, first_row=first_row, rows=rows, tensors=())
    return WindowPart(window_key(shard.source), failed.encode())
