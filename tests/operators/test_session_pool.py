"""SessionPool: one session for each model and task of a process, which ends with its last holder."""

import gc
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.schemas.model import Catalog, ModelSpec, SessionOptions

MODEL = ModelSpec("m", "1", "/models/m/1/model.onnx", "hash", (), ())


class CountingBackend:
    """Counts loaded models."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.loaded: list[ModelSpec] = []
        self.seconds = seconds

    def load(self, model: ModelSpec) -> FakeSession:
        time.sleep(self.seconds)
        self.loaded.append(model)
        return FakeSession(dict)


def test_pool_operators_share_a_session_and_tasks_do_not() -> None:
    backend = CountingBackend()
    chained, exchange, other = SessionPool(backend, 0), SessionPool(backend, 0), SessionPool(backend, 1)
    assert chained.session_of(MODEL) is exchange.session_of(MODEL)
    assert chained.session_of(MODEL) is not other.session_of(MODEL)
    assert len(backend.loaded) == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, sha256="other"),
        replace(MODEL, path="/elsewhere"),
        replace(MODEL, session=SessionOptions(intra_op_threads=2)),
    ],
)
def test_pool_other_file_or_options_get_another_session(other: ModelSpec) -> None:
    backend = CountingBackend()
    assert SessionPool(backend, 0).session_of(MODEL) is not SessionPool(backend, 0).session_of(other)
    assert len(backend.loaded) == 2


def test_pool_session_lives_as_long_as_its_holders() -> None:
    backend = CountingBackend()
    first, second = SessionPool(backend, 0), SessionPool(backend, 0)
    session = weakref.ref(first.session_of(MODEL))
    assert second.session_of(MODEL) is session()
    del first
    gc.collect()
    assert session() is second.session_of(MODEL)
    del second
    gc.collect()
    assert session() is None
    SessionPool(backend, 0).session_of(MODEL)
    assert len(backend.loaded) == 2


def test_pool_load_all_loads_each_model_and_version() -> None:
    backend = CountingBackend()
    second = replace(MODEL, version="2", sha256="2")
    sessions = SessionPool(backend, 0)
    sessions.load_all(Catalog({"m": {"1": MODEL, "2": second}, "n": {"1": replace(MODEL, name="n", sha256="n")}}))
    assert len(backend.loaded) == 3
    sessions.session_of(second)
    assert len(backend.loaded) == 3


def test_pool_concurrent_operators_load_once() -> None:
    backend = CountingBackend(seconds=0.05)
    holders = [SessionPool(backend, 7) for _ in range(4)]
    threads = [threading.Thread(target=holder.session_of, args=(MODEL,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(backend.loaded) == 1


def test_pool_failed_load_is_tried_again() -> None:
    class FailsOnce(CountingBackend):
        def load(self, model: ModelSpec) -> FakeSession:
            session = super().load(model)
            if len(self.loaded) == 1:
                raise ModelLoadFailed("not yet")
            return session

    sessions = SessionPool(FailsOnce(), 0)
    with pytest.raises(ModelLoadFailed):
        sessions.session_of(MODEL)
    assert sessions.session_of(MODEL).run((), {"x": np.zeros(1)}) == []


def test_pool_unequal_backends_share_no_session() -> None:
    holders = SessionPool(CountingBackend(), 0), SessionPool(CountingBackend(), 0)
    assert holders[0].session_of(MODEL) is not holders[1].session_of(MODEL)
    # Each operator gets its own copy of the job's backend.
    assert OnnxBackend() == OnnxBackend()
    assert hash(OnnxBackend()) == hash(OnnxBackend())


@pytest.mark.parametrize(("batchable", "rows"), [(True, 3), (False, 1)])
def test_pool_session_learns_the_cost_of_batches(batchable: bool, rows: int) -> None:
    model = replace(MODEL, batchable=batchable)
    session = SessionPool(CountingBackend(), 0).session_of(model)
    session.costs = BatchCostModel([Measurement(1, 1e-9), Measurement(3, 3e-9)])
    seen: list[int] = []
    session.costs.observe = lambda rows, run_ms: seen.append(rows)  # type: ignore[method-assign]
    session.run((), {"x": np.zeros((3, 2))})
    assert seen == [rows]
