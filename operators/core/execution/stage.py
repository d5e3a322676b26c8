"""Runs one stage of a cut model, and turns requests into units for the first stage.

    requests, shards --> UNIT --> [ stage 0 ] --> UNIT --> [ stage 1 ] --> PARTIAL for each window
                                       +------- FAILURE --------+

A unit holds every tensor that a later stage or the answer needs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from anabranch.operators.backends.base import Session
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_run import FailedRows, PartOutcome, PartRows, run_batch
from anabranch.operators.core.execution.window_parts import failure_parts, name_rows
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.row_ranges import RowBlock
from anabranch.operators.core.merging.shards import row_offsets
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Unit, WindowPart
from anabranch.operators.core.requests import Request, undecodable
from anabranch.schemas.errors import InternalError, ModelUnavailable
from anabranch.schemas.limits import CACHED_SIGNATURES
from anabranch.schemas.model import LeftOut, ModelSpec
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    PartialRecord,
    Segment,
    ShardRecord,
    Source,
    UnitRecord,
    encode_record,
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
from anabranch.schemas.tensors import Array, Buffer, Tensor


def stage_name(model: ModelSpec, index: int) -> str:
    """Name a stage for people, counted from 1."""
    return f"{model.name}/{model.version} stage {index + 1}/{len(model.stages)}"


def enter(parts: Sequence[Request] | Sequence[ShardRecord], model: ModelSpec) -> UnitRecord:
    """Return the unit of requests or shards of one signature for the first stage."""
    signature = decode_signature(parts[0].signature)
    # Functions of a step may use any tensor.
    needed = {spec.name for spec in model.inputs} if model.is_chain else _needed_after(model, -1, signature)
    tensors, live = [], []
    for index, spec in enumerate(signature.inputs):
        if spec.name in needed:
            live.append(spec)
            data = [part.tensors[index] for part in parts]
            tensors.append(data[0] if len(data) == 1 else b"".join(data))
    entered = Signature(signature.model_name, signature.model_version, tuple(live), signature.outputs)
    segments = tuple([_segment_of(part) for part in parts])
    return UnitRecord(segments, encode_signature(entered), tuple(tensors), is_whole=not model.batchable)


class _UnitLayout(NamedTuple):
    """Positions of tensors in a unit: `inputs` of the stage, and `passes` for later ones."""

    signature: Signature
    inputs: tuple[int, ...]
    runs: Signature
    passes: tuple[int, ...]


class Stage:
    """One task of one stage of a model; `pack` encodes records for another task."""

    def __init__(
        self,
        model: ModelSpec,
        index: int,
        session: Session,
        now_ms: Callable[[], float],
        task: int,
        pack: Callable[[UnitRecord | PartialRecord], bytes] = encode_record,
        defects: Defects | None = None,
    ) -> None:
        self._model = model
        self._index = index
        self._session = session
        self._now_ms = now_ms
        self._task = task
        self._pack = pack
        self._defects = defects or Defects(Meter())
        self._is_last = index == len(model.stages) - 1
        self._name = f"stage {index + 1}"
        self._layouts: dict[bytes, _UnitLayout] = {}

    def on_unit(self, encoded: Buffer, now_ms: float) -> Sequence[Unit | WindowPart]:
        """Run a UNIT; return one for the next stage, or parts for windows; never raises.

        A failed unit fails all its segments, an undecodable one its readable segments. A late one gives nothing.
        """
        try:
            unit = UnitRecord.decode(encoded)
        except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
            self._defects.note("batch", error, f"{self._name}: undecodable UNIT of {len(encoded)} bytes")
            return self._fail(salvage_segments(encoded), undecodable(error, self._name))
        deadline_ms = unit.deadline_ms
        if deadline_ms != NO_DEADLINE_MS and deadline_ms <= now_ms:
            return []
        try:
            if unit.failure is not None:
                return self._fail(unit.segments, unit.failure)
            return self._run(unit, now_ms)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            self._defects.note("batch", error, self._name)
            failure = Failure(InternalError.code, f"{type(error).__name__}: {error}", self._name)
            return self._fail(unit.segments, failure)

    def _run(self, unit: UnitRecord, now_ms: float) -> list[Unit | WindowPart]:
        layout = self._layout_of(unit.signature)
        unit_rows = unit.rows
        outcome, ran_ms = PartOutcome([RowBlock(0, unit_rows, ())], []), 0.0
        if layout.runs.outputs:
            part = PartRows(unit_rows, [unit.tensors[at] for at in layout.inputs])
            batch = run_batch([part], layout.runs, self._model, self._session, self._now_ms, self._defects)
            [outcome] = batch.outcomes()
            ran_ms = batch.ended_ms - batch.started_ms
        taken_ms, ran_ms = unit.taken_ms or now_ms, unit.ran_ms + ran_ms
        outputs: list[Unit | WindowPart] = []
        for good in outcome.good:
            tensors = {tensor.name: tensor for tensor in (*self._passing(layout, unit, good), *good.outputs)}
            segments = rows_within(unit.segments, good.first_row, good.rows)
            if self._is_last:
                outputs += self._partials(layout.signature, tensors, segments, good.rows, taken_ms, ran_ms)
            else:
                outputs.append(self._next(layout.signature, tensors, segments, taken_ms, ran_ms))
        for bad in outcome.bad:
            outputs += self._fail_rows(unit.segments, bad)
        return outputs

    def _passing(self, layout: _UnitLayout, unit: UnitRecord, rows: RowBlock) -> list[Tensor]:
        passing, unit_rows = [], unit.rows
        for at in layout.passes:
            spec, data = layout.signature.inputs[at], unit.tensors[at]
            if rows.rows != unit_rows:
                starts = row_offsets(spec.datatype, spec.shape, data, unit_rows)
                data = data[starts[rows.first_row] : starts[rows.first_row + rows.rows]]
            passing.append(Tensor(spec.name, spec.datatype, self._shape(rows.rows, spec.shape), data))
        return passing

    def _next(
        self,
        signature: Signature,
        tensors: dict[str, Tensor],
        segments: tuple[Segment, ...],
        taken_ms: float,
        ran_ms: float,
    ) -> Unit:
        live = tuple([self._described(tensor) for tensor in tensors.values()])
        unit = UnitRecord(
            segments,
            encode_signature(Signature(signature.model_name, signature.model_version, live, signature.outputs)),
            tuple([tensor.data for tensor in tensors.values()]),
            is_whole=not self._model.batchable,
            taken_ms=taken_ms,
            ran_ms=ran_ms,
        )
        return Unit((self._model.name, self._model.version), self._pack(unit))

    def _partials(
        self,
        signature: Signature,
        tensors: dict[str, Tensor],
        segments: tuple[Segment, ...],
        rows: int,
        taken_ms: float,
        ran_ms: float,
    ) -> list[WindowPart]:
        ended_ms = self._now_ms()
        outputs = [tensors[name] for name in signature.outputs]
        described = encode_signature(OutputSignature(self._task, tuple([self._described(each) for each in outputs])))
        is_alone = len(segments) == 1
        starts = [
            None if is_alone else row_offsets(tensor.datatype, tensor.shape[1:], tensor.data, rows)
            for tensor in outputs
        ]
        parts, first = [], 0
        for segment in segments:
            last = first + segment.rows
            data: list[Buffer] = [
                tensor.data if offsets is None else tensor.data[offsets[first] : offsets[last]]
                for tensor, offsets in zip(outputs, starts, strict=True)
            ]
            partial = PartialRecord(
                segment,
                described,
                tuple(data),
                is_whole=not self._model.batchable,
                taken_ms=taken_ms,
                # Earlier stages count as part of this session.
                started_ms=ended_ms - ran_ms,
                ended_ms=ended_ms,
            )
            parts.append(WindowPart(window_key(segment.source), self._pack(partial)))
            first = last
        return parts

    def _fail_rows(self, segments: Sequence[Segment], bad: FailedRows) -> list[WindowPart]:
        parts = []
        for segment in rows_within(segments, bad.first_row, bad.rows):
            message = name_rows(segment.first_row, segment.rows, bad.message)
            parts += self._fail([segment], Failure(bad.code, message, self._name))
        return parts

    def _fail(self, segments: Sequence[Segment], failure: Failure) -> list[WindowPart]:
        named = replace(failure, model_name=self._model.name, model_version=self._model.version)
        return failure_parts(segments, named)

    def _layout_of(self, encoded: bytes) -> _UnitLayout:
        layout = self._layouts.get(encoded)
        if layout is None:
            if len(self._layouts) >= CACHED_SIGNATURES:
                self._layouts.clear()
            layout = self._layouts[encoded] = self._lay_out(decode_signature(encoded))
        return layout

    def _lay_out(self, signature: Signature) -> _UnitLayout:
        at = {spec.name: index for index, spec in enumerate(signature.inputs)}
        stage = self._model.stages[self._index]
        inputs = tuple(at[spec.name] for spec in stage.inputs)
        needed = _needed_after(self._model, self._index, signature)
        runs = Signature(
            signature.model_name,
            signature.model_version,
            tuple(signature.inputs[index] for index in inputs),
            tuple(spec.name for spec in stage.outputs if spec.name in needed),
        )
        passes = tuple(index for name, index in at.items() if name in needed)
        return _UnitLayout(signature, inputs, runs, passes)

    def _described(self, tensor: Tensor) -> TensorSignature:
        shape = tensor.shape[1:] if self._model.batchable else tensor.shape
        return TensorSignature(tensor.name, tensor.datatype, shape)

    def _shape(self, rows: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (rows, *shape) if self._model.batchable else shape


class UnavailableStage(Stage):
    """A stage or step whose model or functions did not load: fails every unit."""

    def __init__(self, model: ModelSpec, index: int, reason: str) -> None:
        super().__init__(model, index, _NoSession(), lambda: 0.0, 0)
        self._reason = reason

    def _run(self, unit: UnitRecord, now_ms: float) -> list[Unit | WindowPart]:
        left_out = LeftOut(self._model.name, self._model.version, self._reason)
        return [*self._fail(unit.segments, Failure(ModelUnavailable.code, left_out.message, self._name))]


class _NoSession:
    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        raise NotImplementedError


def _segment_of(part: Request | ShardRecord) -> Segment:
    if isinstance(part, ShardRecord):
        return part.segment
    source = part.source
    if source.carried:  # The window has them.
        source = Source(source.partition, source.offset, source.timestamp_ms)
    return Segment(source, part.id, part.deadline_ms, rows=part.rows, total_rows=part.rows)


def _needed_after(model: ModelSpec, index: int, signature: Signature) -> set[str]:
    """Return the tensors that the answer or stages after `index` need."""
    later = {spec.name for stage in model.stages[index + 1 :] for spec in stage.inputs}
    return later | set(signature.outputs)


def rows_within(segments: Sequence[Segment], first_row: int, rows: int) -> tuple[Segment, ...]:
    """Return the segments of some rows."""
    some, at, stop = [], 0, first_row + rows
    for segment in segments:
        low, high = max(at, first_row), min(at + segment.rows, stop)
        if low < high:
            some.append(replace(segment, first_row=segment.first_row + low - at, rows=high - low))
        at += segment.rows
    return tuple(some)
