"""Runs a batch, and finds the rows at fault if it fails.

A failing batch is halved down to single rows. A bad row costs about 2 * log2(rows) calls.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec.structs import replace

from anabranch.operators.backends.base import Session
from anabranch.operators.core.defects import DefectSink
from anabranch.operators.core.execution.padded_batch import PaddedInputs, cut_back, gather
from anabranch.operators.core.merging.row_ranges import BatchOutputs, RowBlock
from anabranch.schemas.errors import InferenceFailed, RunTooLong, ServingError
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.padding import Padding
from anabranch.schemas.signatures import Signature
from anabranch.schemas.tensors import Array, Buffer, Tensor, array_from_raw

PHASE = "session"


class BatchPart(Protocol):
    """A request, a shard, or the rows of a UNIT."""

    @property
    def rows(self) -> int:
        """1 for a model without batch axis."""

    @property
    def tensors(self) -> Sequence[Buffer]:
        """Raw bytes of each input of the signature."""


class PartRows(NamedTuple):
    """A part of only rows and tensors."""

    rows: int
    tensors: Sequence[Buffer]


class FailedRows(NamedTuple):
    """Rows of a part on which the model failed."""

    first_row: int
    rows: int
    message: str
    code: str = InferenceFailed.code


class PartOutcome(NamedTuple):
    """Outputs and failures of one part."""

    good: Sequence[RowBlock]
    bad: Sequence[FailedRows]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs and failures of a batch.

    Attributes:
        is_by_row: True if axis 0 of every output counts rows.
        good: Outputs of consecutive rows that share a tensor.
        bad: Failed rows of the batch.
        apart: Outcome of each part, without batch axis.
        started_ms: Unix time of the first call of the session.
        elements: Elements of padded inputs, of which `filled` are padding.
    """

    is_by_row: bool
    part_rows: Sequence[int]
    good: Sequence[BatchOutputs] = ()
    bad: Sequence[FailedRows] = ()
    apart: Sequence[PartOutcome] | None = None
    started_ms: float = 0.0
    ended_ms: float = 0.0
    elements: int = 0
    filled: int = 0

    @property
    def whole(self) -> BatchOutputs | None:
        """Outputs of all rows, if they share a tensor."""
        return self.good[0] if len(self.good) == 1 and not self.bad and self.apart is None else None

    def outcomes(self) -> Sequence[PartOutcome]:
        """Return the outcome of each part."""
        if self.apart is not None:
            return self.apart
        outcomes, first = [], 0
        for rows in self.part_rows:
            last = first + rows
            outcomes.append(PartOutcome(self._good_between(first, last), self._bad_between(first, last)))
            first = last
        return outcomes

    def _good_between(self, first: int, last: int) -> list[RowBlock]:
        return [block.rows_between(first, last) for block in self.good if block.start < last and block.stop > first]

    def _bad_between(self, first: int, last: int) -> list[FailedRows]:
        bad = []
        for failed in self.bad:
            low, high = max(failed.first_row, first), min(failed.first_row + failed.rows, last)
            if low < high:
                bad.append(FailedRows(low - first, high - low, failed.message, failed.code))
        return bad


def run_batch(
    parts: Sequence[BatchPart],
    signature: Signature,
    model: ModelSpec,
    session: Session,
    now_ms: Callable[[], float],
    defects: DefectSink,
    joined: Sequence[Buffer] = (),
) -> BatchResult:
    """Run parts of one signature as one batch; failing rows do not raise.

    Args:
        defects: Gets the exception of each failing row.
        joined: Tensors with the rows of all parts, if they exist.
    """
    part_rows = [part.rows for part in parts]
    if not model.batchable:
        started_ms = now_ms()
        apart = [_run_whole(part, signature, session, defects) for part in parts]
        return BatchResult(is_by_row=False, part_rows=part_rows, apart=apart, started_ms=started_ms, ended_ms=now_ms())
    rows = sum(part_rows)
    padded = None
    if model.padding is None or joined:
        inputs = _gather(parts, signature, rows, joined)
    else:
        padded = gather(model.padding, signature, [(part.rows, part.tensors) for part in parts])
        inputs = padded.arrays
    run = _RowRun(signature.outputs, inputs, rows, model.fixed_rows, session, defects)
    started_ms = now_ms()
    if model.is_indivisible:
        run.run_parts(part_rows)
    else:
        run.run_all()
    ended_ms = now_ms()
    result = BatchResult(
        is_by_row=True,
        part_rows=part_rows,
        good=[BatchOutputs(start, stop, signature.outputs, outputs) for start, stop, outputs in _joined(run.good)],
        bad=run.bad,
        started_ms=started_ms,
        ended_ms=ended_ms,
    )
    return result if padded is None else _cut_back(result, model.padding, padded)


def _cut_back(result: BatchResult, padding: Padding | None, padded: PaddedInputs) -> BatchResult:
    result = replace(result, elements=padded.elements, filled=padded.filled)
    if padding is None or not padded.filled:
        return result
    apart = [
        PartOutcome([cut_back(padding, block, length) for block in good], bad)
        for (good, bad), length in zip(result.outcomes(), padded.lengths, strict=True)
    ]
    return replace(result, apart=apart)


class _RowRun:
    """The calls of the session for one batch."""

    __slots__ = ("_defects", "_inputs", "_outputs", "_rows", "_session", "_step", "bad", "good")

    def __init__(
        self,
        outputs: Sequence[str],
        inputs: dict[str, Array],
        rows: int,
        step: int | None,
        session: Session,
        defects: DefectSink,
    ) -> None:
        self._defects = defects
        self._outputs = outputs
        self._inputs = inputs
        self._rows = rows
        self._step = step
        self._session = session
        self.good: list[tuple[int, int, list[Array]]] = []
        self.bad: list[FailedRows] = []

    def run_all(self) -> None:
        step = self._step or self._rows
        for start in range(0, self._rows, step):
            self._run(start, start + step)

    def run_parts(self, part_rows: Sequence[int]) -> None:
        start = 0
        for rows in part_rows:
            self._step = rows
            self._run(start, start + rows)
            start += rows

    def _run(self, start: int, stop: int) -> None:
        rows = stop - start
        inputs = self._inputs
        if rows != self._rows:
            inputs = {name: array[start:stop] for name, array in inputs.items()}
        try:
            outputs = self._session.run(self._outputs, inputs)
            for name, output in zip(self._outputs, outputs, strict=True):
                if output.ndim == 0 or output.shape[0] != rows:
                    raise ValueError(
                        f"output {name!r} has shape {list(output.shape)} for {rows} rows, expected {rows} on axis 0: "
                        "set enabled = false under [batching] in the model's model.toml"
                    )
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            if rows == (self._step or 1):
                self._defects.note(PHASE, error, _at_fault(start, rows))
                self.bad.append(FailedRows(start, rows, str(error), code_of(error)))
                return
            if isinstance(error, RunTooLong):
                # Each half with the slow row would take the whole time again.
                for first in range(start, stop, self._step or 1):
                    self._run(first, first + (self._step or 1))
                return
            middle = start + rows // 2
            self._run(start, middle)
            self._run(middle, stop)
        else:
            self.good.append((start, stop, outputs))


def _joined(good: list[tuple[int, int, list[Array]]]) -> list[tuple[int, int, list[Array]]]:
    joined: list[tuple[int, int, list[list[Array]]]] = []
    for start, stop, outputs in good:
        if joined and joined[-1][1] == start and _alike(joined[-1][2][-1], outputs):
            joined[-1][2].append(outputs)
            joined[-1] = (joined[-1][0], stop, joined[-1][2])
        else:
            joined.append((start, stop, [outputs]))
    return [
        (
            start,
            stop,
            parts[0] if len(parts) == 1 else [np.concatenate(tensors) for tensors in zip(*parts, strict=True)],
        )
        for start, stop, parts in joined
    ]


def _alike(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def _run_whole(part: BatchPart, signature: Signature, session: Session, defects: DefectSink) -> PartOutcome:
    inputs = {
        spec.name: _aligned(array_from_raw(spec.datatype, spec.shape, data))
        for spec, data in zip(signature.inputs, part.tensors, strict=True)
    }
    try:
        outputs = session.run(signature.outputs, inputs)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        defects.note(PHASE, error, _at_fault(0, 1))
        return PartOutcome([], [FailedRows(0, 1, str(error), code_of(error))])
    tensors = (Tensor.from_array(name, output) for name, output in zip(signature.outputs, outputs, strict=True))
    return PartOutcome([RowBlock(0, 1, tuple(tensors))], [])


def code_of(error: Exception) -> str:
    """Return the code of a failed run."""
    return error.code if isinstance(error, ServingError) else InferenceFailed.code


def _at_fault(start: int, rows: int) -> str:
    return f"rows {start} to {start + rows - 1} of a batch"


def _gather(parts: Sequence[BatchPart], signature: Signature, rows: int, joined: Sequence[Buffer]) -> dict[str, Array]:
    inputs = {}
    for index, spec in enumerate(signature.inputs):
        if joined:
            data = joined[index]
        else:
            tensors = [part.tensors[index] for part in parts]
            data = tensors[0] if len(tensors) == 1 else b"".join(tensors)
        inputs[spec.name] = _aligned(array_from_raw(spec.datatype, (rows, *spec.shape), data))
    return inputs


def _aligned(array: Array) -> Array:
    # Tensors start anywhere in the message.
    return array if array.flags.aligned else array.copy()
