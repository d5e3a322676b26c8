"""Steps of a chain: the output of one model feeds the next, with Python functions around each.

A step is a `Stage` with any tensors. `before(tensors)` returns a mapping for each run of the model, and
`after(tensors, runs)` gets inputs and outputs of each. Arrays are read-only. An exception fails its request only.

With a batch axis, the rows of several requests run in one call; if it fails, its halves do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from anabranch.operators.backends.base import Session
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_run import PHASE, FailedRows, code_of
from anabranch.operators.core.execution.stage import Stage, rows_within
from anabranch.operators.core.outputs import Unit, WindowPart
from anabranch.schemas.errors import AnabranchError, InferenceFailed, RequestError
from anabranch.schemas.model import ModelSpec, TensorSpec
from anabranch.schemas.records import PartialRecord, UnitRecord, encode_record
from anabranch.schemas.signatures import Failure, Signature, decode_signature
from anabranch.schemas.tensors import Array, Tensor, array_from_raw, fits, show_axes

Named: TypeAlias = Mapping[str, Array]
Before: TypeAlias = Callable[[Named], Named | Sequence[Named]]
After: TypeAlias = Callable[[Named, Sequence[Named]], Named]


class Step(Stage):
    """One task of one step; see `Stage` for the other arguments.

    Args:
        before: None if the tensors are the model's inputs.
        after: None to forward inputs and outputs of the only run.
    """

    def __init__(
        self,
        model: ModelSpec,
        index: int,
        session: Session,
        now_ms: Callable[[], float],
        task: int,
        pack: Callable[[UnitRecord | PartialRecord], bytes] = encode_record,
        defects: Defects | None = None,
        *,
        before: Before | None = None,
        after: After | None = None,
    ) -> None:
        super().__init__(model, index, session, now_ms, task, pack, defects)
        self._step = model.stages[index]
        self._before = before
        self._after = after
        self._name = f"step {index + 1} ({self._step.name})"

    def _run(self, unit: UnitRecord, now_ms: float) -> list[Unit | WindowPart]:
        signature = decode_signature(unit.signature)
        started_ms, rows = self._now_ms(), unit.rows
        came = {
            spec.name: array_from_raw(spec.datatype, self._shape(rows, spec.shape), data)
            for spec, data in zip(signature.inputs, unit.tensors, strict=True)
        }
        good, bad = self._run_rows(came, signature, 0, rows)
        taken_ms, ran_ms = unit.taken_ms or now_ms, unit.ran_ms + self._now_ms() - started_ms
        outputs: list[Unit | WindowPart] = []
        for first, count, tensors in good:
            segments = rows_within(unit.segments, first, count)
            if self._is_last:
                outputs += self._partials(signature, tensors, segments, count, taken_ms, ran_ms)
            else:
                outputs.append(self._next(signature, tensors, segments, taken_ms, ran_ms))
        for failed in bad:
            if self._model.batchable:
                outputs += self._fail_rows(unit.segments, failed)
            else:
                outputs += self._fail(unit.segments, Failure(failed.code, failed.message, self._name))
        return outputs

    def _run_rows(
        self, came: Named, signature: Signature, first: int, rows: int
    ) -> tuple[list[tuple[int, int, dict[str, Tensor]]], list[FailedRows]]:
        """Run some rows, and their halves if that fails."""
        batchable = self._model.batchable
        part = {name: array[first : first + rows] for name, array in came.items()} if batchable else came
        try:
            made = self._call(part)
            tensors = {name: _tensor(name, array) for name, array in made.items()}
            if batchable:
                _check_rows(tensors, rows)
            if self._is_last:
                _check_outputs(tensors, signature.outputs, self._model.outputs)
        except _StepFailed as error:
            if rows > 1 and batchable:
                half = rows // 2
                good, bad = self._run_rows(came, signature, first, half)
                more_good, more_bad = self._run_rows(came, signature, first + half, rows - half)
                return good + more_good, bad + more_bad
            if error.cause is not None:
                self._defects.note(PHASE, error.cause, f"{self._name}: {error.what}")
            return [], [FailedRows(first, rows, f"{self._name}: {error}", error.code)]
        return [(first, rows, tensors)], []

    def _call(self, came: Named) -> Named:
        given = came if self._before is None else self._guarded("before", self._before, came)
        feeds = [given] if isinstance(given, Mapping) else given
        if not isinstance(feeds, Sequence) or not all(isinstance(feed, Mapping) for feed in feeds):
            raise _StepFailed(
                f"before returned {type(given).__name__}, expected a mapping of arrays or a list of such mappings"
            )
        runs = [self._run_model(feed) for feed in feeds]
        if self._after is not None:
            made = self._guarded("after", self._after, came, runs)
        elif len(runs) == 1:
            [made] = runs
        else:
            raise _StepFailed(f"the model ran {len(runs)} times, expected 1: add `after` to join its outputs")
        if not isinstance(made, Mapping):
            raise _StepFailed(f"after returned {type(made).__name__}, expected a mapping of arrays")
        return made

    def _run_model(self, feed: Named) -> Named:
        missing = [spec.name for spec in self._step.inputs if spec.name not in feed]
        if missing:
            found = ", ".join(feed) or "nothing"
            raise _StepFailed(f"the model lacks {', '.join(missing)}, found {found}: return all inputs from `before`")
        inputs = {spec.name: np.asarray(feed[spec.name]) for spec in self._step.inputs}
        names = [spec.name for spec in self._step.outputs]
        outputs = self._guarded("model", self._session.run, names, inputs)
        return {**feed, **dict(zip(names, outputs, strict=True))}

    def _guarded(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RequestError as error:
            raise _StepFailed(error.message, error.code) from None
        except Exception as error:  # noqa: BLE001 - a function may raise anything
            message = f"{what}: {type(error).__name__}: {error}"
            raise _StepFailed(message, code_of(error), cause=error, what=what) from None


class _StepFailed(Exception):
    """A failure of a step, caused by a defect of `what`."""

    def __init__(
        self, message: str, code: str = InferenceFailed.code, cause: Exception | None = None, what: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.cause = cause
        self.what = what


def _tensor(name: str, array: Array) -> Tensor:
    try:
        return Tensor.from_array(name, np.asarray(array))
    except (AnabranchError, ValueError) as error:
        raise _StepFailed(f"tensor {name!r} cannot be sent on: {error}") from None


def _check_rows(tensors: Mapping[str, Tensor], rows: int) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[:1] != (rows,):
            raise _StepFailed(f"tensor {name!r} has shape {list(tensor.shape)} for {rows} rows: return a row for each")


def _check_outputs(tensors: Mapping[str, Tensor], wanted: Sequence[str], declared: Sequence[TensorSpec]) -> None:
    specs = {spec.name: spec for spec in declared}
    for name in wanted:
        tensor, spec = tensors.get(name), specs[name]
        if tensor is None:
            raise _StepFailed(f"output {name!r} of the chain is missing, found {', '.join(tensors)}: return it")
        if tensor.datatype != spec.datatype or not fits(tensor.shape, spec.shape):
            raise _StepFailed(
                f"output {name!r} of the chain is {tensor.datatype} {list(tensor.shape)}, "
                f"expected {spec.datatype} {show_axes(spec.shape)}: return that"
            )
