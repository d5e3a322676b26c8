"""One session for each model and task of this process, shared by the operators of the task.

In thread mode every task of a TaskManager lives in one interpreter; the chained and the exchange operator of a task
find the same session here. Nobody closes an operator of a cancelled job for us, so sessions are held weakly: they go
when the last operator that uses them does.
"""

import threading
from weakref import WeakValueDictionary

from operators.backends.base import Backend, Session
from schemas.model import Catalog, ModelSpec

_lock = threading.Lock()
_shared: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()


class Sessions:
    """The sessions of one task.

    Args:
        backend: Back-ends that are equal share sessions.
        task: Tasks do not share sessions: each runs in a thread of its own.
    """

    def __init__(self, backend: Backend, task: int) -> None:
        self._backend = backend
        self._task = task
        self._held: dict[tuple[str, str], Session] = {}

    def load_all(self, catalog: Catalog) -> None:
        """Loads and warms up every model.

        Raises:
            ModelLoadFailed: One cannot be loaded.
        """
        for versions in catalog.models.values():
            for model in versions.values():
                self.session_of(model)

    def session_of(self, model: ModelSpec) -> Session:
        """The session of a model."""
        name = (model.name, model.version)
        session = self._held.get(name)
        if session is None:
            session = self._held[name] = self._share(model)
        return session

    def _share(self, model: ModelSpec) -> Session:
        key = (model.path, model.sha256, model.session, self._backend, self._task)
        with _lock:
            session = _shared.get(key)
            if session is None:
                session = _shared[key] = self._backend.load(model)
            return session
