"""Calibration measures the cost of batches once on a machine, and keeps it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from anabranch.operators.sessions.calibration import calibrate
from anabranch.schemas.model import Batching, ModelSpec, SessionOptions, TensorSpec
from anabranch.schemas.tensors import Array

X = TensorSpec("x", "FP32", (None, 3))
Y = TensorSpec("y", "FP32", (None, 1))
MODEL = ModelSpec("m", "1", "/models/m/1/model.onnx", "hash", (X,), (Y,), batching=Batching(max_rows=12, shard_rows=4))


class CountingSession:
    """Records the shapes of its runs."""

    def __init__(self, *, fails_from_rows: int = 10**9) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fails_from_rows = fails_from_rows

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        shape = inputs["x"].shape
        self.shapes.append(shape)
        if shape and shape[0] >= self.fails_from_rows:
            raise ValueError("too many")
        return [np.zeros((1, 1), np.float32) for _ in outputs]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "anabranch" / "calibration"


def test_calibrate_measures_powers_of_two_and_the_maximum() -> None:
    session = CountingSession()
    measured = calibrate(session, MODEL)
    assert [each.rows for each in measured] == [1, 2, 4, 8, 12]
    assert all(each.run_ms > 0 for each in measured)
    assert {shape[1:] for shape in session.shapes} == {(3,)}
    assert all(session.shapes.count((each.rows, 3)) >= 2 for each in measured)


def test_calibrate_cached_measurements_are_read(cache: Path) -> None:
    first = calibrate(CountingSession(), MODEL)
    again = CountingSession()
    assert calibrate(again, MODEL) == first
    assert again.shapes == []
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, sha256="other"),
        replace(MODEL, session=SessionOptions(intra_op_threads=2)),
        replace(MODEL, batching=Batching(max_rows=16)),
    ],
)
def test_calibrate_other_model_or_options_measures_again(other: ModelSpec) -> None:
    calibrate(CountingSession(), MODEL)
    session = CountingSession()
    calibrate(session, other)
    assert session.shapes


def test_calibrate_unreadable_file_measures_again(cache: Path) -> None:
    first = calibrate(CountingSession(), MODEL)
    [kept] = cache.iterdir()
    kept.write_bytes(b"{broken")
    session = CountingSession()
    assert len(calibrate(session, MODEL)) == len(first)
    assert session.shapes
    assert calibrate(CountingSession(), MODEL)


def test_calibrate_without_a_cache_folder_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))
    assert len(calibrate(CountingSession(), MODEL)) == 5


def test_calibrate_fixed_or_no_batch_axis_measures_one_size() -> None:
    [fixed] = calibrate(CountingSession(), replace(MODEL, inputs=(TensorSpec("x", "FP32", (2, 3)),), fixed_rows=2))
    assert fixed.rows == 2
    session = CountingSession()
    whole = replace(MODEL, inputs=(TensorSpec("x", "FP32", (7, 3)),), batchable=False)
    [alone] = calibrate(session, whole)
    assert (alone.rows, set(session.shapes)) == (1, {(7, 3)})


@pytest.mark.parametrize(
    "model",
    [
        replace(MODEL, inputs=(TensorSpec("x", "FP32", (None, None)),)),
        replace(MODEL, inputs=(TensorSpec("x", "FP32", (None,)),), batchable=False),
        replace(MODEL, session=SessionOptions(calibrate=False)),
    ],
)
def test_calibrate_open_shapes_or_disabled_runs_nothing(model: ModelSpec) -> None:
    session = CountingSession()
    assert calibrate(session, model) == ()
    assert session.shapes == []


def test_calibrate_failing_sizes_are_left_out() -> None:
    assert [each.rows for each in calibrate(CountingSession(fails_from_rows=4), MODEL)] == [1, 2]
    assert calibrate(CountingSession(fails_from_rows=0), replace(MODEL, sha256="other")) == ()


def test_calibrate_slow_model_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    class SlowSession(CountingSession):
        def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
            nonlocal now_s
            now_s += 0.2 * inputs["x"].shape[0]
            return super().run(outputs, inputs)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    measured = calibrate(SlowSession(), MODEL)
    assert [(each.rows, round(each.run_ms)) for each in measured] == [(1, 200), (2, 400)]


@pytest.mark.parametrize(("row_ms", "most"), [(0.0, 1024), (0.003, 512), (0.1, 64)])
def test_calibrate_without_a_limit_measures_while_quick(
    row_ms: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    class SteadySession(CountingSession):
        def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
            nonlocal now_s
            now_s += row_ms / 1000 * inputs["x"].shape[0]
            return super().run(outputs, inputs)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    measured = calibrate(SteadySession(), replace(MODEL, batching=Batching()))
    assert [each.rows for each in measured] == [2**power for power in range(most.bit_length())]


def test_calibrate_concurrent_tasks_measure_once() -> None:
    sessions = [CountingSession() for _ in range(4)]
    threads = [Thread(target=calibrate, args=(session, MODEL)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(session.shapes) for session in sessions) == 1
