"""One session for each model and task of this process, shared by the operators of the task.

In thread mode every task of a TaskManager lives in one interpreter; the chained and the exchange operator of a task
find the same session here. Nobody closes an operator of a cancelled job for us, so sessions are held weakly: they go
when the last operator that uses them does.
"""

import threading
from collections.abc import Mapping, Sequence
from time import perf_counter
from weakref import WeakValueDictionary

from anabranch.operators.backends.base import Backend, Session
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.sessions.calibration import calibrate
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.tensors import Array

_lock = threading.Lock()
_shared: WeakValueDictionary[tuple[object, ...], "MeasuredSession"] = WeakValueDictionary()


class MeasuredSession:
    """A session that knows what its batches cost."""

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


class SessionPool:
    """The sessions of one task.

    Args:
        backend: Back-ends that are equal share sessions.
        task: Tasks do not share sessions: each runs in a thread of its own.
    """

    def __init__(self, backend: Backend, task: int) -> None:
        self._backend = backend
        self._task = task
        self._held: dict[tuple[str, str], MeasuredSession] = {}

    def load_all(self, catalog: Catalog) -> None:
        """Loads and warms up every model that runs as a whole; a stage is loaded where it runs.

        Raises:
            ModelLoadFailed: One cannot be loaded.
        """
        for model in catalog.whole():
            self.session_of(model)

    def session_of(self, model: ModelSpec) -> MeasuredSession:
        """The session of a model."""
        name = (model.name, model.version)
        session = self._held.get(name)
        if session is None:
            session = self._held[name] = self._share(model)
        return session

    def costs_of(self, model: ModelSpec) -> BatchCostModel:
        """What a model's batches cost."""
        return self.session_of(model).costs

    def _share(self, model: ModelSpec) -> MeasuredSession:
        key = (model.path, model.sha256, model.session, self._backend, self._task)
        with _lock:
            session = _shared.get(key)
            if session is None:
                loaded = self._backend.load(model)
                session = _shared[key] = MeasuredSession(
                    loaded, BatchCostModel(calibrate(loaded, model)), batchable=model.batchable
                )
            return session
