"""Runs a batch, and finds the rows at fault when it fails.

A batch that fails is halved until what fails is one row (or, for a model without batch axis, one request): the rows at
fault get the error, their neighbours get their answer. A good batch costs one call; a bad row about 2 * log2(rows).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from anabranch.operators.backends.base import Session
from anabranch.operators.core.merging.row_ranges import BatchOutputs, RowBlock
from anabranch.operators.core.requests import Request
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.records import Record, Signature
from anabranch.schemas.tensors import Array, Buffer, Tensor, array_from_raw

#: What a batch is made of: requests, or shards.
BatchPart: TypeAlias = Request | Record


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Rows of a part on which the model failed, and why."""

    first_row: int
    rows: int
    message: str


@dataclass(slots=True)
class PartOutcome:
    """What became of one part's rows; row numbers are the part's own, counted from 0."""

    good: list[RowBlock]
    bad: list[FailedRows]


class BatchRun:
    """Requests or shards of one signature, run as one batch. Never raises for a bad row.

    Args:
        now_ms: The clock.
        joined: The tensors of all parts, where they are together already.

    Attributes:
        is_by_row: Whether axis 0 of every output counts rows.
        whole: The outputs of all rows together; None where some failed, ran apart, or cannot share a tensor.
        started_ms: When the session was called first.
        ended_ms: When it had run last.
    """

    def __init__(
        self,
        parts: Sequence[BatchPart],
        signature: Signature,
        model: ModelSpec,
        session: Session,
        now_ms: Callable[[], float],
        joined: Sequence[Buffer] = (),
    ) -> None:
        self._parts = parts
        self._signature = signature
        self._step = model.fixed_rows
        self._session = session
        self._rows = sum([part.rows for part in parts])
        self._good: list[tuple[int, int, list[Array]]] = []
        self._bad: list[tuple[int, int, str]] = []
        self.is_by_row = model.batchable
        self.whole: BatchOutputs | None = None
        self._outcomes: list[PartOutcome] | None = None
        if model.batchable:
            self._inputs = _gather(parts, signature, self._rows, joined)
        self.started_ms = now_ms()
        if model.batchable:
            self._run_rows()
        else:
            self._outcomes = [_run_whole(part, signature, session) for part in parts]
        self.ended_ms = now_ms()
        if model.batchable:
            self._join()

    def outcomes(self) -> list[PartOutcome]:
        """One for each part, in order."""
        if self._outcomes is None:
            self._outcomes = self._divide()
        return self._outcomes

    def _run_rows(self) -> None:
        step = self._step or self._rows
        for start in range(0, self._rows, step):
            self._run(start, start + step)

    def _join(self) -> None:
        self._served = [
            BatchOutputs(start, stop, self._signature.outputs, outputs) for start, stop, outputs in _joined(self._good)
        ]
        if not self._bad and len(self._served) == 1:
            self.whole = self._served[0]

    def _divide(self) -> list[PartOutcome]:
        outcomes, first = [], 0
        for part in self._parts:
            last = first + part.rows
            good = [
                served.rows_between(first, last)
                for served in self._served
                if served.start < last and served.stop > first
            ]
            bad = [
                FailedRows(max(start, first) - first, min(stop, last) - max(start, first), message)
                for start, stop, message in self._bad
                if start < last and stop > first
            ]
            outcomes.append(PartOutcome(good, bad))
            first = last
        return outcomes

    def _run(self, start: int, stop: int) -> None:
        rows = stop - start
        inputs = self._inputs
        if rows != self._rows:
            inputs = {name: array[start:stop] for name, array in inputs.items()}
        try:
            outputs = self._session.run(self._signature.outputs, inputs)
            for name, output in zip(self._signature.outputs, outputs, strict=True):
                if output.ndim == 0 or output.shape[0] != rows:
                    raise ValueError(
                        f"output {name!r} has shape {list(output.shape)} for {rows} rows: axis 0 does not count rows; "
                        "set enabled = false under [batching] in the model's model.toml"
                    )
        except Exception as error:  # noqa: BLE001 - whatever a model fails with is the answer to its rows
            if rows == (self._step or 1):
                self._bad.append((start, stop, str(error)))
                return
            middle = start + rows // 2
            self._run(start, middle)
            self._run(middle, stop)
        else:
            self._good.append((start, stop, outputs))


def _joined(good: list[tuple[int, int, list[Array]]]) -> list[tuple[int, int, list[Array]]]:
    """Rows that ran one after the other (a model with a fixed batch size) as one run, where their shapes allow it."""
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


def _run_whole(part: BatchPart, signature: Signature, session: Session) -> PartOutcome:
    inputs = {
        spec.name: _aligned(array_from_raw(spec.datatype, spec.shape, data))
        for spec, data in zip(signature.inputs, part.tensors, strict=True)
    }
    try:
        outputs = session.run(signature.outputs, inputs)
    except Exception as error:  # noqa: BLE001 - whatever a model fails with is the answer to its request
        return PartOutcome([], [FailedRows(0, 1, str(error))])
    tensors = (Tensor.from_array(name, output) for name, output in zip(signature.outputs, outputs, strict=True))
    return PartOutcome([RowBlock(0, 1, tuple(tensors))], [])


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
    # A request that was taken as it came has its tensors anywhere.
    return array if array.flags.aligned else array.copy()
