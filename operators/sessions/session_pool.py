"""Sessions that the operators of a task share."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import TypeAlias

from anabranch.operators.backends.base import Backend, Session
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.sessions.calibration import calibrate
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.tensors import Array


class MeasuredSession:
    """Session that measures its batches."""

    def __init__(self, session: Session, costs: BatchCostModel, *, batchable: bool) -> None:
        self._session = session
        self._batchable = batchable
        self.costs = costs

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """See `anabranch.operators.backends.base.Session`."""
        start_s = perf_counter()
        results = self._session.run(outputs, inputs)
        rows = next(iter(inputs.values())).shape[0] if self._batchable else 1
        self.costs.observe(rows, (perf_counter() - start_s) * 1000)
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

    def load_all(self, catalog: Catalog) -> None:
        """Load all whole models.

        Raises:
            ModelLoadFailed: A model cannot be loaded.
        """
        for model in catalog.whole():
            self.session_of(model)

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

    def _load(self, model: ModelSpec) -> MeasuredSession:
        loaded = self._backend.load(model)
        return MeasuredSession(loaded, BatchCostModel(calibrate(loaded, model)), batchable=model.batchable)
