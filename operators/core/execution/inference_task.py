"""Runs batches and shards.

    batch of requests  --> answers (an error and a dead letter for failed rows)
    BATCH              --> the same
    SHARD              --> PARTIAL and FAILURE to the window of the request

An exception fails only the requests concerned.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec.structs import replace

from anabranch.operators.backends.base import Session
from anabranch.operators.core.defects import Defect, DefectSink
from anabranch.operators.core.execution.batch_run import BatchPart, BatchResult, PartOutcome, PartRows, run_batch
from anabranch.operators.core.execution.batch_transfer import unpack
from anabranch.operators.core.execution.window_parts import failure_of, failure_parts, name_rows
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.row_ranges import merge_rows, missing_ranges
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, WindowPart
from anabranch.operators.core.requests import Refused, Request, undecodable
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.schemas.errors import DeadlineExceeded, InferenceFailed, InternalError
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    BatchRecord,
    FailureRecord,
    PartialRecord,
    RecordKind,
    Segment,
    ShardRecord,
    encode_record,
    salvage_entries,
    salvage_segments,
)
from anabranch.schemas.signatures import (
    Failure,
    OutputSignature,
    Signature,
    TensorSignature,
    decode_signature,
    encode_signature,
)
from anabranch.schemas.tensors import Buffer

PHASE = "infer"
_BATCH = bytes([RecordKind.BATCH])
_FAILURE = bytes([RecordKind.FAILURE])


@dataclass(slots=True)
class RanApart:
    """A batch that another thread ran.

    Attributes:
        result: None if it failed as a whole.
    """

    taken_ms: float
    result: BatchResult | None = None
    defects: list[Defect] = field(default_factory=list)

    def note(self, phase: str, error: BaseException, detail: str = "") -> None:
        """Keep a defect for the task's thread."""
        self.defects.append(Defect(phase, error, detail))


class InferenceTask:
    """One inference task; `pack` encodes outputs of a shard."""

    def __init__(
        self,
        catalog: Catalog,
        session_of: Callable[[ModelSpec], Session],
        response_writer: ResponseWriter,
        task: int,
        pack: Callable[[PartialRecord], bytes] = encode_record,
    ) -> None:
        self._catalog = catalog
        self._session_of = session_of
        self._response_writer = response_writer
        self._defects = response_writer.defects
        self._task = task
        self._pack = pack

    def on_batch(
        self,
        requests: Sequence[Request],
        taken_ms: float,
        joined: Sequence[Buffer] = (),
        ran: BatchResult | None = None,
    ) -> list[Answer | DeadLetterRecord]:
        """Run requests of one signature and answer them; never raises.

        Args:
            taken_ms: Unix time.
            joined: Tensors with the rows of all requests, if they exist.
            ran: Their result, if they ran.
        """
        try:
            signature = decode_signature(requests[0].signature)
            batch = self._run(requests, signature, joined) if ran is None else ran
            if batch.elements:
                self._response_writer.meter.note_padding(signature, batch.elements, batch.filled)
            for request in requests:
                breakdown = request.breakdown
                if breakdown is not None:
                    breakdown.taken_ms, breakdown.started_ms = taken_ms, batch.started_ms
                    breakdown.ended_ms = breakdown.merged_ms = batch.ended_ms
            outputs: list[Answer | DeadLetterRecord] = []
            answered = requests
            whole = batch.whole
            if whole is not None:
                outputs = self._response_writer.answer_batch(requests, signature, whole, phase=PHASE, task=self._task)
            else:
                outcomes = batch.outcomes()
                for request, outcome in zip(requests, outcomes, strict=True):
                    outputs += self._answer(request, outcome)
                answered = [each for each, outcome in zip(requests, outcomes, strict=True) if not outcome.bad]
            self._response_writer.meter.note_batch(
                signature,
                answered,
                taken_ms=taken_ms,
                started_ms=batch.started_ms,
                ended_ms=batch.ended_ms,
                written_ms=self._response_writer.now_ms(),
            )
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            if len(requests) == 1:
                failure = self._failure_of(error, f"request {requests[0].id!r}")
                return self._response_writer.fail(requests[0], failure)
            return [output for request in requests for output in self.on_batch([request], taken_ms)]
        return outputs

    def run_apart(self, requests: Sequence[Request], taken_ms: float) -> RanApart:
        """Run requests of one signature in any thread, for `on_ran`; never raises."""
        ran = RanApart(taken_ms)
        with suppress(Exception):  # `on_ran` runs them again, and reports it.
            ran.result = self._run(requests, decode_signature(requests[0].signature), defects=ran)
        return ran

    def on_ran(self, requests: Sequence[Request], ran: RanApart) -> list[Answer | DeadLetterRecord]:
        """Answer requests that ran apart; never raises."""
        for defect in ran.defects:
            self._defects.note(*defect)
        return self.on_batch(requests, ran.taken_ms, ran=ran.result)

    def on_exchange(
        self, encoded: Buffer, now_ms: float, decoded: BatchRecord | None = None
    ) -> Sequence[Answer | DeadLetterRecord | WindowPart]:
        """Run a SHARD or BATCH of another task; never raises.

        Args:
            decoded: The BATCH, if that is known.
        """
        is_batch = encoded[:1] == _BATCH
        return self.on_transferred(encoded, now_ms, decoded) if is_batch else self.on_shard(encoded, now_ms)

    def on_transferred(
        self, encoded: Buffer, now_ms: float, decoded: BatchRecord | None = None
    ) -> list[Answer | DeadLetterRecord]:
        """Run the requests of a BATCH, and fail late ones; never raises.

        An undecodable BATCH fails its readable requests.
        """
        try:
            batch = BatchRecord.decode(encoded) if decoded is None else decoded
            requests = unpack(batch)
        except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
            self._defects.note("batch", error, f"undecodable BATCH of {len(encoded)} bytes")
            return self._refuse_entries(encoded, undecodable(error, PHASE))
        alive = [each for each in requests if each.deadline_ms == NO_DEADLINE_MS or each.deadline_ms > now_ms]
        if len(alive) == len(requests):
            return self.on_batch(requests, now_ms, batch.tensors)
        late = Failure(
            DeadlineExceeded.code, "the deadline passed on the way to another task: raise the request's timeout", PHASE
        )
        outputs: list[Answer | DeadLetterRecord] = []
        for request in requests:
            if request.deadline_ms != NO_DEADLINE_MS and request.deadline_ms <= now_ms:
                outputs += self._response_writer.fail(request, late)
        return outputs + self.on_batch(alive, now_ms) if alive else outputs

    def on_shard(self, encoded: Buffer, now_ms: float) -> list[WindowPart]:
        """Run a SHARD, or forward the FAILURE that replaced it; never raises.

        A late SHARD gives nothing: its window answers then. An undecodable one fails its readable rows.
        """
        try:
            shard = FailureRecord.decode(encoded) if encoded[:1] == _FAILURE else ShardRecord.decode(encoded)
        except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
            self._defects.note("batch", error, f"undecodable SHARD of {len(encoded)} bytes")
            return failure_parts(salvage_segments(encoded), undecodable(error, PHASE))
        deadline_ms = shard.segment.deadline_ms
        if deadline_ms != NO_DEADLINE_MS and deadline_ms <= now_ms:
            return []
        if isinstance(shard, FailureRecord):
            return [WindowPart(window_key(shard.segment.source), bytes(encoded))]
        try:
            return self._run_shard(shard, now_ms)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            failure = self._failure_of(error, f"shard of request {shard.segment.id!r}")
            return failure_parts([shard.segment], failure)

    def _run_shard(self, shard: ShardRecord, taken_ms: float) -> list[WindowPart]:
        signature = decode_signature(shard.signature)
        segment = shard.segment
        batch = self._run([PartRows(segment.rows, shard.tensors)], signature)
        [outcome] = batch.outcomes()
        key = window_key(segment.source)
        parts = []
        for good in outcome.good:
            outputs = tuple(
                TensorSignature(t.name, t.datatype, t.shape[1:] if batch.is_by_row else t.shape) for t in good.outputs
            )
            partial = PartialRecord(
                _rows_of(segment, good.first_row, good.rows),
                encode_signature(OutputSignature(self._task, outputs)),
                tuple([tensor.data for tensor in good.outputs]),
                is_whole=not batch.is_by_row,
                taken_ms=taken_ms,
                started_ms=batch.started_ms,
                ended_ms=batch.ended_ms,
            )
            parts.append(WindowPart(key, self._pack(partial)))
        for bad in outcome.bad:
            failed = _rows_of(segment, bad.first_row, bad.rows)
            message = name_rows(failed.first_row, failed.rows, bad.message)
            failure = Failure(bad.code, message, PHASE, signature.model_name, signature.model_version)
            parts += failure_parts([failed], failure)
        return parts

    def _run(
        self,
        parts: Sequence[BatchPart],
        signature: Signature,
        joined: Sequence[Buffer] = (),
        defects: DefectSink | None = None,
    ) -> BatchResult:
        model = self._catalog.find(signature.model_name, signature.model_version)
        session = self._session_of(model)
        return run_batch(
            parts, signature, model, session, self._response_writer.now_ms, defects or self._defects, joined
        )

    def _answer(self, request: Request, outcome: PartOutcome) -> list[Answer | DeadLetterRecord]:
        if not outcome.bad:
            return self._merge(request, outcome, None)
        bad = outcome.bad[0]
        failure = Failure(bad.code, name_rows(bad.first_row, bad.rows, bad.message), PHASE)
        if request.partial_allowed and outcome.good:
            return self._merge(request, outcome, failure)
        return self._response_writer.fail(request, failure)

    def _merge(
        self, request: Request, outcome: PartOutcome, failure: Failure | None
    ) -> list[Answer | DeadLetterRecord]:
        try:
            merged = merge_rows(outcome.good)
        except InferenceFailed as error:
            return self._response_writer.fail(request, failure_of(error, PHASE))
        missing: list[tuple[int, int]] = []
        if failure is not None:
            missing = missing_ranges(((part.first_row, part.rows) for part in outcome.good), request.rows)
        return self._response_writer.answer(
            request,
            merged,
            phase=PHASE,
            missing=missing,
            failure=failure,
            task=self._task,
            breakdown=request.breakdown,
        )

    def _failure_of(self, error: Exception, detail: str) -> Failure:
        failure = failure_of(error, PHASE)
        if failure.code == InternalError.code:
            self._defects.note("batch", error, detail)
        return failure

    def _refuse_entries(self, encoded: Buffer, failure: Failure) -> list[Answer | DeadLetterRecord]:
        return [
            output
            for entry in salvage_entries(encoded)
            for output in self._response_writer.refuse(
                Refused(entry.source, entry.id, entry.encoding, bytes(entry.original), failure)
            )
        ]


def _rows_of(segment: Segment, first_row: int, rows: int) -> Segment:
    if rows == segment.rows:
        return segment
    return replace(segment, first_row=segment.first_row + first_row, rows=rows)
