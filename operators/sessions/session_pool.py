"""Sessions that the operators of a task share."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeAlias

import msgspec
import numpy as np

from anabranch.operators.backends.base import Backend, ModelLoadFailed, Session
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.sessions.calibration import calibrate
from anabranch.operators.sessions.crash_guard import CrashGuard, GuardedBackend
from anabranch.operators.sessions.model_cache import is_stored, local_path, naming_files
from anabranch.operators.sessions.step_functions import load_function
from anabranch.schemas.model import Catalog, FunctionSpec, LeftOut, ModelSpec, StageSpec
from anabranch.schemas.tensors import Array

_LOGGER = logging.getLogger("anabranch.models")


class MeasuredSession:
    """Session that measures its batches.

    Args:
        guard: Notes the runs.
        unit_rows: Rows of the smallest batch; 0 if only whole requests run.
    """

    def __init__(
        self,
        session: Session,
        costs: BatchCostModel,
        *,
        batchable: bool,
        guard: CrashGuard | None = None,
        unit_rows: int = 0,
    ) -> None:
        self._session = session
        self._batchable = batchable
        self._guard = guard
        self._unit_rows = unit_rows
        self.costs = costs

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """See `anabranch.operators.backends.base.Session`."""
        guard = self._guard
        if guard is None:
            return self._run(outputs, inputs)
        arrays = list(inputs.values())
        units = arrays[0].shape[0] // self._unit_rows if self._unit_rows and arrays else 1
        return guard.call(arrays, units, self._run, outputs, inputs)

    def _run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        start_s = perf_counter()
        results = self._session.run(outputs, inputs)
        run_ms = (perf_counter() - start_s) * 1000
        costs = self.costs
        if costs.skips(run_ms):
            return results
        rows = next(iter(inputs.values())).shape[0] if self._batchable else 1
        elements = sum([array.size for array in inputs.values()]) if costs.learns_sizes else 1
        costs.observe(rows, run_ms, elements // (rows or 1))
        return results


#: See `process_runtime.Hold.share`.
Share: TypeAlias = Callable[[Hashable, Callable[[], MeasuredSession]], MeasuredSession]


class SessionPool:
    """Sessions of one operator.

    Args:
        backend: Equal back-ends share sessions.
        task: Each task has its own sessions, for its thread.
    """

    def __init__(self, backend: Backend, task: int, share: Share) -> None:
        self._backend = backend
        self._task = task
        self._share = share
        self._held: dict[tuple[str, str], MeasuredSession] = {}
        self._journal = backend.journal() if isinstance(backend, GuardedBackend) else None

    def load_all(self, catalog: Catalog) -> Catalog:
        """Load all whole models; return the catalog without those that cannot be loaded."""
        failed = []
        for model in catalog.whole():
            try:
                self.session_of(model)
            except ModelLoadFailed as error:
                failed.append(LeftOut(model.name, model.version, error.message))
        return catalog.without(failed) if failed else catalog

    def session_of(self, model: ModelSpec) -> MeasuredSession:
        """Return a model's session, loaded on first use."""
        name = (model.name, model.version)
        session = self._held.get(name)
        if session is None:
            key = (MeasuredSession, model.path, model.sha256, model.session, self._backend, self._task)
            session = self._held[name] = self._share(key, lambda: self._load(model))
        return session

    def costs_of(self, model: ModelSpec) -> BatchCostModel:
        """Return the cost model of a model's batches."""
        return self.session_of(model).costs

    def function_of(
        self, model: ModelSpec, function: FunctionSpec, stage: StageSpec | None = None, *, by_row: bool = False
    ) -> Callable[..., Any]:
        """Load a function of a step, with its runs noted; raise `ModelLoadFailed`.

        Args:
            by_row: Axis 0 of each array counts rows.
        """
        run = load_function(function, stage)
        subject = f"{model.name}/{model.version}: {function.name} {function.sha256[:12]}"
        guard = self._guard_of(model, subject, fixed_types=False)
        if guard is None:
            return run

        def guarded(*given: Any) -> Any:
            mappings = [each for some in given for each in ([some] if isinstance(some, Mapping) else some)]
            arrays = [np.asarray(array) for each in mappings for array in each.values()]
            return guard.call(arrays, arrays[0].shape[0] if by_row and arrays else 1, run, *given)

        return guarded

    def _load(self, model: ModelSpec) -> MeasuredSession:
        libraries = tuple(str(local_path(each)) if is_stored(each) else each for each in model.session.custom_ops)
        session = msgspec.structs.replace(model.session, custom_ops=libraries)
        path = local_path(model.path)
        with naming_files(path):
            loaded = self._backend.load(replace(model, path=str(path), session=session))
        verdict = model.verdict
        is_apart = verdict.level != "strangers" and model.batching.enabled is not False
        level = logging.WARNING if is_apart and not model.fixed_rows else logging.INFO
        _LOGGER.log(level, "%s/%s: %s: %s", model.name, model.version, verdict.level, verdict.reason)
        return MeasuredSession(
            loaded,
            BatchCostModel(calibrate(loaded, model), model.fixed_rows),
            batchable=model.batchable,
            guard=self._guard_of(model, f"{model.name}/{model.version} {model.sha256[:12]}", fixed_types=True),
            unit_rows=0 if model.is_indivisible or not model.batchable else model.fixed_rows or 1,
        )

    def _guard_of(self, model: ModelSpec, subject: str, *, fixed_types: bool) -> CrashGuard | None:
        limit = model.session.max_crashes
        if self._journal is None or not limit:
            return None
        filled = {name: (axis, value) for name, axis, value in model.padding.inputs} if model.padding else {}
        fills = [filled.get(spec.name) for spec in model.inputs] if fixed_types and filled else ()
        return CrashGuard(self._journal, subject, limit, fixed_types=fixed_types, fills=fills)
