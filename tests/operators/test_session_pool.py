"""SessionPool: one session for each model and task of a process, until its last holder is closed."""

import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from anabranch.operators.backends.base import Backend, ModelLoadFailed
from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.backends.onnx import OnnxBackend, sha256_of
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.runtime.process_runtime import Hold, ProcessRuntime
from anabranch.operators.sessions import session_pool
from anabranch.operators.sessions.crash_guard import CrashGuard, GuardedBackend
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.schemas.model import BatchingVerdict, Catalog, FunctionSpec, LeftOut, ModelSpec, SessionOptions

MODEL = ModelSpec("m", "1", "/models/m/1/model.onnx", "hash", (), ())


class Process:
    """Makes the pools of operators that share a process."""

    def __init__(self) -> None:
        self._runtime = ProcessRuntime()
        self.holds: list[Hold] = []

    def pool(self, backend: Backend, task: int = 0) -> SessionPool:
        self.holds.append(self._runtime.acquire("job", 0))
        return SessionPool(backend, task, self.holds[-1].share)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    for hold in made.holds:
        hold.release()


class CountingBackend:
    """Counts loaded models."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.loaded: list[ModelSpec] = []
        self.seconds = seconds

    def load(self, model: ModelSpec) -> FakeSession:
        time.sleep(self.seconds)
        self.loaded.append(model)
        return FakeSession(dict)


@pytest.mark.parametrize("measured", [(), (Measurement(1, 0.1),)])
def test_session_that_becomes_slow_or_quick_is_followed(
    measured: tuple[Measurement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs, now_s, run_s = BatchCostModel(measured), 0.0, 0.0

    def run(_: object) -> dict[str, np.ndarray[Any, Any]]:
        nonlocal now_s
        now_s += run_s
        return {}

    monkeypatch.setattr(session_pool, "perf_counter", lambda: now_s)
    session = session_pool.MeasuredSession(FakeSession(run), costs, batchable=True)
    for run_ms, runs in (0.1, 400), (5.0, 100), (0.1, 500), (0.4, 500):
        run_s = run_ms / 1000
        for _ in range(runs):
            session.run([], {"x": np.zeros((1, 4), np.float32)})
        assert costs.predict_ms(1, 4) == pytest.approx(run_ms, rel=0.2)


def test_pool_operators_share_a_session_and_tasks_do_not(process: Process) -> None:
    backend = CountingBackend()
    chained, exchange, other = process.pool(backend, 0), process.pool(backend, 0), process.pool(backend, 1)
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
def test_pool_other_file_or_options_get_another_session(process: Process, other: ModelSpec) -> None:
    backend = CountingBackend()
    assert process.pool(backend, 0).session_of(MODEL) is not process.pool(backend, 0).session_of(other)
    assert len(backend.loaded) == 2


def test_pool_session_lives_until_its_last_holder_closes(process: Process) -> None:
    backend = CountingBackend()
    first, second = process.pool(backend), process.pool(backend)
    session = weakref.ref(first.session_of(MODEL))
    assert second.session_of(MODEL) is session()
    process.holds[0].release()
    del first
    assert session() is second.session_of(MODEL)
    third = process.pool(backend)
    assert third.session_of(MODEL) is session()
    process.holds[1].release()
    process.holds[2].release()
    del second, third
    assert session() is None
    process.pool(backend).session_of(MODEL)
    assert len(backend.loaded) == 2


def test_pool_load_all_loads_each_model_and_version(process: Process) -> None:
    backend = CountingBackend()
    second = replace(MODEL, version="2", sha256="2")
    sessions = process.pool(backend, 0)
    sessions.load_all(Catalog({"m": {"1": MODEL, "2": second}, "n": {"1": replace(MODEL, name="n", sha256="n")}}))
    assert len(backend.loaded) == 3
    sessions.session_of(second)
    assert len(backend.loaded) == 3


def test_pool_concurrent_operators_load_once(process: Process) -> None:
    backend = CountingBackend(seconds=0.05)
    holders = [process.pool(backend, 7) for _ in range(4)]
    threads = [threading.Thread(target=holder.session_of, args=(MODEL,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(backend.loaded) == 1


def test_pool_failed_load_is_tried_again(process: Process) -> None:
    class FailsOnce(CountingBackend):
        def load(self, model: ModelSpec) -> FakeSession:
            session = super().load(model)
            if len(self.loaded) == 1:
                raise ModelLoadFailed("not yet")
            return session

    sessions = process.pool(FailsOnce(), 0)
    with pytest.raises(ModelLoadFailed):
        sessions.session_of(MODEL)
    assert sessions.session_of(MODEL).run((), {"x": np.zeros(1)}) == []


def test_pool_unequal_backends_share_no_session(process: Process) -> None:
    holders = process.pool(CountingBackend(), 0), process.pool(CountingBackend(), 0)
    assert holders[0].session_of(MODEL) is not holders[1].session_of(MODEL)
    # Each operator gets its own copy of the job's backend.
    assert OnnxBackend() == OnnxBackend()
    assert hash(OnnxBackend()) == hash(OnnxBackend())


@pytest.mark.parametrize(("batchable", "rows"), [(True, 3), (False, 1)])
def test_pool_session_learns_the_cost_of_batches(process: Process, batchable: bool, rows: int) -> None:
    model = replace(MODEL, batchable=batchable)
    session = process.pool(CountingBackend(), 0).session_of(model)
    session.costs = BatchCostModel([Measurement(1, 1e-9), Measurement(3, 3e-9)])
    seen: list[tuple[int, int]] = []

    def observe(rows: int, run_ms: float, row_elements: int = 1) -> None:
        seen.append((rows, row_elements))

    session.costs.observe = observe  # type: ignore[method-assign]
    session.run((), {"x": np.zeros((3, 2))})
    session.costs = BatchCostModel()
    session.costs.observe = observe  # type: ignore[method-assign]
    session.run((), {"x": np.zeros((3, 2)), "t": np.array(["a", "b", "c"], dtype=object)})
    # Only a model without measurements counts elements.
    assert [each[0] for each in seen] == [rows] * 2
    assert seen[1][1] == 9 // rows


@pytest.mark.parametrize(("level", "units"), [("strangers", 3), ("within request", 1)])
def test_pool_guard_halves_only_independent_rows(
    process: Process,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    level: Literal["strangers", "within request"],
    units: int,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(CrashGuard, "call", lambda self, arrays, units, *_: seen.append(units))
    model = replace(MODEL, verdict=BatchingVerdict(level=level, reason="a running sum"))
    session = process.pool(GuardedBackend(CountingBackend(), str(tmp_path))).session_of(model)
    seen.clear()
    session.run((), {"x": np.zeros((3, 2))})
    assert seen == [units]
    warned = [f"m/1: {level}: a running sum"] if units == 1 else []
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == warned


def test_pool_of_a_guarded_backend_notes_its_runs(process: Process, tmp_path: Path) -> None:
    backend = GuardedBackend(CountingBackend(), str(tmp_path))
    model = replace(MODEL, session=SessionOptions(calibrate=False))
    process.pool(backend).session_of(model).run(["x"], {"x": np.zeros((2, 1))})
    process.pool(backend).session_of(replace(model, name="free", session=SessionOptions(max_crashes=0)))
    [note] = tmp_path.glob("run-*")
    assert b"m/1 hash" in note.read_bytes()


def test_pool_function_of_a_step_notes_its_runs(process: Process, tmp_path: Path) -> None:
    file = tmp_path / "steps.py"
    file.write_text("def double(tensors, runs):\n    return {'y': [2 * tensors['x'], *[run['y'] for run in runs]]}\n")
    spec = FunctionSpec(str(file), sha256_of(file), "double")
    run = process.pool(GuardedBackend(CountingBackend(), str(tmp_path / "crashes"))).function_of(MODEL, spec)
    assert run({"x": np.array(3)}, [{"y": np.array("a")}])["y"] == [6, "a"]
    [note] = (tmp_path / "crashes").glob("run-*")
    assert b"m/1: double" in note.read_bytes()


@pytest.mark.parametrize(("by_row", "units"), [(True, 3), (False, 1)])
def test_pool_guard_halves_rows_of_a_step_that_counts_them(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_row: bool, units: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(CrashGuard, "call", lambda self, arrays, units, *_: seen.append(units))
    file = tmp_path / "steps.py"
    file.write_text("def double(tensors): ...\n")
    pool = process.pool(GuardedBackend(CountingBackend(), str(tmp_path / "crashes")))
    pool.function_of(MODEL, FunctionSpec(str(file), sha256_of(file), "double"), by_row=by_row)({"x": np.zeros((3, 2))})
    assert seen == [units]


def test_pool_model_that_does_not_load_is_left_out(process: Process) -> None:
    class Refuses(CountingBackend):
        def load(self, model: ModelSpec) -> FakeSession:
            if model.name == "bad":
                raise ModelLoadFailed("no memory")
            return super().load(model)

    given = Catalog({"m": {"1": MODEL}, "bad": {"1": replace(MODEL, name="bad", sha256="bad")}})
    served = process.pool(Refuses()).load_all(given)
    assert list(served.models) == ["m"]
    assert served.left_out == (LeftOut("bad", "1", "no memory"),)
    assert process.pool(CountingBackend()).load_all(given) is given
