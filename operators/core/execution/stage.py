"""A model that is cut into stages: how requests enter it, and what one of its stages does.

    requests, shards --> UNIT --> [ stage 0 ] --> UNIT --> [ stage 1 ] --> a PARTIAL for each member's window
                                       |                        |
                                       +--- FAILURE: the rows at fault, and no others

A unit carries every tensor that a later stage or the answer needs, whoever made it: a skip connection travels past the
stages between. Whatever goes through stages has a window, which answers at the deadline and knows the original.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from anabranch.operators.backends.base import Session
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_run import BatchRun, FailedRows, PartOutcome
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.row_ranges import RowBlock
from anabranch.operators.core.merging.shards import row_offsets
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.schemas.errors import InferenceFailed, InternalError
from anabranch.schemas.limits import CACHED_SIGNATURES
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    OutputSignature,
    Record,
    RecordKind,
    Signature,
    Source,
    TensorSignature,
    UnitSegment,
    decode_failure,
    decode_segments,
    decode_signature,
    encode_segments,
    encode_signature,
)
from anabranch.schemas.tensors import Buffer, Tensor


def stage_name(model: ModelSpec, index: int) -> str:
    """What a person calls a stage; they count from 1."""
    return f"{model.name}/{model.version} stage {index + 1}/{len(model.stages)}"


def enter(parts: Sequence[Request | Record], model: ModelSpec) -> Record:
    """Requests or SHARDs of one signature, as one UNIT for the first stage."""
    signature = decode_signature(parts[0].signature)
    # What a step's functions take, only they know.
    needed = {spec.name for spec in model.inputs} if model.is_chain else _needed_after(model, -1, signature)
    tensors, live = [], []
    for index, spec in enumerate(signature.inputs):
        if spec.name in needed:
            live.append(spec)
            data = [part.tensors[index] for part in parts]
            tensors.append(data[0] if len(data) == 1 else b"".join(data))
    members = [
        UnitSegment(
            part.source.partition,
            part.source.offset,
            part.source.timestamp_ms,
            part.id,
            part.deadline_ms,
            part.first_row if isinstance(part, Record) else 0,
            part.rows,
            part.total_rows if isinstance(part, Record) else part.rows,
        )
        for part in parts
    ]
    entered = Signature(signature.model_name, signature.model_version, tuple(live), signature.outputs)
    return _unit(members, encode_signature(entered), tuple(tensors), is_whole=not model.batchable)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a stage does with units of one signature.

    Attributes:
        inputs: Where in a unit each of the stage's inputs is.
        runs: The stage's own inputs and the outputs wanted of it.
        passes: Where in a unit is what goes on as it is.
    """

    signature: Signature
    inputs: tuple[int, ...]
    runs: Signature
    passes: tuple[int, ...]


class Stage:
    """One task of one stage.

    Args:
        model: The whole model.
        index: Of the stage, from 0.
        session: Of the stage.
        task: The index of the task, for requests that ask where they ran.
        pack: Encodes units, or the outputs of the last stage, for another task.
        defects: Gets unexpected exceptions.
    """

    def __init__(
        self,
        model: ModelSpec,
        index: int,
        session: Session,
        now_ms: Callable[[], float],
        task: int,
        pack: Callable[[Record], bytes] = Record.encode,
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
        self._plans: dict[bytes, _Plan] = {}

    def on_unit(self, encoded: Buffer, now_ms: float) -> list[Unit | WindowPart]:
        """What the stage makes of a UNIT: one for the next stage, or the parts of windows; never raises.

        A FAILURE, which a unit became on its way, is that of all its members. Nothing if nobody waits for it any more,
        or where it is no record of ours: windows answer when their time is over.
        """
        try:
            unit = Record.decode(encoded)
            members = decode_segments(unit.original)
        except Exception as error:  # noqa: BLE001 - anything may be wrong with the bytes
            self._defects.note("batch", error, f"{self._name}: undecodable UNIT of {len(encoded)} bytes")
            return []
        if unit.deadline_ms != NO_DEADLINE_MS and unit.deadline_ms <= now_ms:
            return []
        try:
            if unit.kind is RecordKind.FAILURE:
                return self._failures_of(members, decode_failure(unit.signature))
            return self._run(unit, members, now_ms)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            self._defects.note("batch", error, self._name)
            failure = Failure(InternalError.code, f"{type(error).__name__}: {error}", self._name)
            return self._failures_of(members, failure)

    def _run(self, unit: Record, members: Sequence[UnitSegment], now_ms: float) -> list[Unit | WindowPart]:
        plan = self._plan_of(unit.signature)
        ran = replace(unit, tensors=tuple([unit.tensors[at] for at in plan.inputs]))
        if plan.runs.outputs:
            batch = BatchRun([ran], plan.runs, self._model, self._session, self._now_ms)
            [outcome] = batch.outcomes()
            ran_ms = batch.ended_ms - batch.started_ms
        else:  # what it makes, nobody asked for
            outcome, ran_ms = PartOutcome([RowBlock(0, unit.rows, ())], []), 0.0
        taken_ms, before_ms = unit.times_ms or (now_ms, 0.0)
        times_ms = (taken_ms, before_ms + ran_ms)
        outputs: list[Unit | WindowPart] = []
        for good in outcome.good:
            tensors = {tensor.name: tensor for tensor in (*self._passing(plan, unit, good), *good.outputs)}
            some = _within(members, good.first_row, good.rows)
            if self._is_last:
                outputs += self._partials(plan.signature, tensors, some, good, times_ms)
            else:
                outputs.append(self._next(plan.signature, tensors, some, times_ms))
        for bad in outcome.bad:
            outputs += self._failures(members, bad)
        return outputs

    def _passing(self, plan: _Plan, unit: Record, rows: RowBlock) -> list[Tensor]:
        passing = []
        for at in plan.passes:
            spec, data = plan.signature.inputs[at], unit.tensors[at]
            if rows.rows != unit.rows:
                starts = row_offsets(spec.datatype, spec.shape, data, unit.rows)
                data = data[starts[rows.first_row] : starts[rows.first_row + rows.rows]]
            passing.append(Tensor(spec.name, spec.datatype, self._shape(rows.rows, spec.shape), data))
        return passing

    def _next(
        self,
        signature: Signature,
        tensors: dict[str, Tensor],
        members: Sequence[UnitSegment],
        times_ms: tuple[float, float],
    ) -> Unit:
        live = tuple([self._described(tensor) for tensor in tensors.values()])
        going_on = Signature(signature.model_name, signature.model_version, live, signature.outputs)
        data = tuple([tensor.data for tensor in tensors.values()])
        unit = _unit(members, encode_signature(going_on), data, times_ms, is_whole=not self._model.batchable)
        return Unit((self._model.name, self._model.version), self._pack(unit))

    def _partials(
        self,
        signature: Signature,
        tensors: dict[str, Tensor],
        members: Sequence[UnitSegment],
        rows: RowBlock,
        times_ms: tuple[float, float],
    ) -> list[WindowPart]:
        taken_ms, ran_ms = times_ms
        ended_ms = self._now_ms()
        outputs = [tensors[name] for name in signature.outputs]
        described = encode_signature(OutputSignature(self._task, tuple([self._described(each) for each in outputs])))
        is_alone = len(members) == 1
        starts = [
            None if is_alone else row_offsets(tensor.datatype, tensor.shape[1:], tensor.data, rows.rows)
            for tensor in outputs
        ]
        parts, first = [], 0
        for member in members:
            last = first + member.rows
            data: list[Buffer] = [
                tensor.data if offsets is None else tensor.data[offsets[first] : offsets[last]]
                for tensor, offsets in zip(outputs, starts, strict=True)
            ]
            partial = Record(
                kind=RecordKind.PARTIAL,
                source=Source(member.partition, member.offset, member.timestamp_ms),
                signature=described,
                id=member.id,
                deadline_ms=member.deadline_ms,
                first_row=member.first_row,
                rows=member.rows,
                total_rows=member.total_rows,
                tensors=tuple(data),
                # All stages' sessions as one that ends now: what comes before is waiting and way.
                times_ms=(taken_ms, ended_ms - ran_ms, ended_ms),
                is_whole=not self._model.batchable,
            )
            parts.append(WindowPart(window_key(partial.source), self._pack(partial)))
            first = last
        return parts

    def _failures(self, members: Sequence[UnitSegment], bad: FailedRows) -> list[WindowPart]:
        parts = []
        for member in _within(members, bad.first_row, bad.rows):
            first = member.first_row % member.total_rows  # members of an ensemble count on
            rows = f"row {first}" if member.rows == 1 else f"rows {first} to {first + member.rows - 1}"
            failure = Failure(InferenceFailed.code, f"{rows}: {bad.message}", self._name)
            parts.append(self._failed(member, failure))
        return parts

    def _failures_of(self, members: Sequence[UnitSegment], failure: Failure) -> list[Unit | WindowPart]:
        return [self._failed(member, failure) for member in members]

    def _failed(self, member: UnitSegment, failure: Failure) -> WindowPart:
        named = replace(failure, model_name=self._model.name, model_version=self._model.version)
        source = Source(member.partition, member.offset, member.timestamp_ms)
        failed = Record(
            kind=RecordKind.FAILURE,
            source=source,
            signature=encode_signature(named),
            id=member.id,
            deadline_ms=member.deadline_ms,
            first_row=member.first_row,
            rows=member.rows,
            total_rows=member.total_rows,
        )
        return WindowPart(window_key(source), failed.encode())

    def _plan_of(self, encoded: bytes) -> _Plan:
        plan = self._plans.get(encoded)
        if plan is None:
            if len(self._plans) >= CACHED_SIGNATURES:  # dynamic shapes make endlessly many signatures
                self._plans.clear()
            plan = self._plans[encoded] = self._make_plan(decode_signature(encoded))
        return plan

    def _make_plan(self, signature: Signature) -> _Plan:
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
        return _Plan(signature, inputs, runs, passes)

    def _described(self, tensor: Tensor) -> TensorSignature:
        shape = tensor.shape[1:] if self._model.batchable else tensor.shape
        return TensorSignature(tensor.name, tensor.datatype, shape)

    def _shape(self, rows: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (rows, *shape) if self._model.batchable else shape


def _needed_after(model: ModelSpec, index: int, signature: Signature) -> set[str]:
    """The tensors that must be there behind a stage; -1 is before the first."""
    later = {spec.name for stage in model.stages[index + 1 :] for spec in stage.inputs}
    return later | set(signature.outputs)


def _within(members: Sequence[UnitSegment], first_row: int, rows: int) -> list[UnitSegment]:
    """What members have of the rows [first_row, first_row + rows) of their unit."""
    some, at, stop = [], 0, first_row + rows
    for member in members:
        low, high = max(at, first_row), min(at + member.rows, stop)
        if low < high:
            some.append(replace(member, first_row=member.first_row + low - at, rows=high - low))
        at += member.rows
    return some


def _unit(
    members: Sequence[UnitSegment],
    signature: bytes,
    tensors: tuple[Buffer, ...],
    times_ms: tuple[float, ...] = (),
    *,
    is_whole: bool,
) -> Record:
    first = members[0]
    deadlines = [member.deadline_ms for member in members]
    return Record(
        kind=RecordKind.UNIT,
        source=Source(first.partition, first.offset, first.timestamp_ms),
        signature=signature,
        id=first.id,
        deadline_ms=NO_DEADLINE_MS if NO_DEADLINE_MS in deadlines else max(deadlines),
        first_row=first.first_row,
        rows=sum([member.rows for member in members]),
        total_rows=first.total_rows,
        original=encode_segments(members),
        tensors=tensors,
        times_ms=times_ms,
        is_whole=is_whole,
    )
