"""Runs a batch, and finds the rows at fault when it fails.

A batch that fails is halved until what fails is one row (or, for a model without batch axis, one request): the rows at
fault get the error, their neighbours get their answer. A good batch costs one call; a bad row about 2 * log2(rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.backends.base import Session
from operators.core.merging import Rows
from operators.core.splitting import row_offsets
from schemas.model import ModelSpec
from schemas.records import Record, Signature, decode_signature
from schemas.tensors import Array, Tensor, array_from_raw


@dataclass(frozen=True, slots=True)
class Bad:
    """Rows of a record on which the model failed, and why."""

    first_row: int
    rows: int
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of one record's rows; row numbers are the record's own, counted from 0."""

    good: list[Rows]
    bad: list[Bad]


def run_unit(records: Sequence[Record], model: ModelSpec, session: Session) -> list[Outcome]:
    """Runs records of one signature as one batch; one outcome for each, in order. Never raises for a bad row."""
    signature = decode_signature(records[0].signature)
    if not model.batchable:
        return [_run_whole(record, signature, session) for record in records]
    return _Batch(records, signature, model, session).run()


class _Batch:
    def __init__(self, records: Sequence[Record], signature: Signature, model: ModelSpec, session: Session) -> None:
        self._records = records
        self._signature = signature
        self._step = model.fixed_rows
        self._session = session
        self._rows = sum(record.rows for record in records)
        self._inputs = _gather(records, signature, self._rows)
        self._good: list[tuple[int, int, list[Array]]] = []
        self._bad: list[tuple[int, int, str]] = []

    def run(self) -> list[Outcome]:
        step = self._step or self._rows
        for start in range(0, self._rows, step):
            self._run(start, start + step)
        served = [
            _Served(start, stop, self._signature.outputs, outputs) for start, stop, outputs in _joined(self._good)
        ]
        outcomes, first = [], 0
        for record in self._records:
            last = first + record.rows
            good = [part.rows_between(first, last) for part in served if part.start < last and part.stop > first]
            bad = [
                Bad(max(start, first) - first, min(stop, last) - max(start, first), message)
                for start, stop, message in self._bad
                if start < last and stop > first
            ]
            outcomes.append(Outcome(good, bad))
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


class _Served:
    """Rows that ran together; what each record gets of them is a view."""

    def __init__(self, start: int, stop: int, names: Sequence[str], outputs: Sequence[Array]) -> None:
        self.start = start
        self.stop = stop
        rows = stop - start
        self._tensors = []
        for name, output in zip(names, outputs, strict=True):
            tensor = Tensor.from_array(name, output)
            starts = row_offsets(tensor.datatype, tensor.shape[1:], tensor.data, rows)
            self._tensors.append((name, tensor.datatype, tensor.shape[1:], tensor.data, starts))

    def rows_between(self, first: int, last: int) -> Rows:
        """The part that belongs to the rows [first, last) of the batch, numbered from `first`."""
        low, high = max(self.start, first), min(self.stop, last)
        rows, begin, end = high - low, low - self.start, high - self.start
        tensors = [
            Tensor(name, datatype, (rows, *shape), data[starts[begin] : starts[end]])
            for name, datatype, shape, data, starts in self._tensors
        ]
        return Rows(low - first, rows, tuple(tensors))


def _run_whole(record: Record, signature: Signature, session: Session) -> Outcome:
    inputs = {
        spec.name: _aligned(array_from_raw(spec.datatype, spec.shape, data))
        for spec, data in zip(signature.inputs, record.tensors, strict=True)
    }
    try:
        outputs = session.run(signature.outputs, inputs)
    except Exception as error:  # noqa: BLE001 - whatever a model fails with is the answer to its request
        return Outcome([], [Bad(0, 1, str(error))])
    tensors = (Tensor.from_array(name, output) for name, output in zip(signature.outputs, outputs, strict=True))
    return Outcome([Rows(0, 1, tuple(tensors))], [])


def _gather(records: Sequence[Record], signature: Signature, rows: int) -> dict[str, Array]:
    inputs = {}
    for index, spec in enumerate(signature.inputs):
        if len(records) == 1:
            data = records[0].tensors[index]
        else:
            data = b"".join([record.tensors[index] for record in records])
        inputs[spec.name] = _aligned(array_from_raw(spec.datatype, (rows, *spec.shape), data))
    return inputs


def _aligned(array: Array) -> Array:
    # Records place the first tensor on a boundary; the others of a request taken as it came may lie anywhere.
    return array if array.flags.aligned else array.copy()
