"""Runs that do not end are stopped; the next run of the session is not."""

import threading
from pathlib import Path

import numpy as np
import pytest

from anabranch import RunTooLong
from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.onnx_runtime.run_watchdog import RunWatchdog
from anabranch.operators.backends.onnx import OnnxBackend
from tests.onnx_runtime.loops import write_loop


@pytest.mark.slow
def test_watchdog_endless_run_is_stopped(tmp_path: Path) -> None:
    write_loop(tmp_path / "loop" / "1", max_run_ms=200)
    session = OnnxBackend().load(read_repository(tmp_path, ModelDefaults()).find("loop", ""))
    for _ in range(2):
        with pytest.raises(RunTooLong, match=r"longer than 200 ms, and was stopped: .* max_run_ms under \[session\]"):
            session.run(["y"], {"n": np.array([[2**62]], np.int64)})
        assert session.run(["y"], {"n": np.array([[3]], np.int64)})[0].tolist() == [[3]]


def test_watchdog_other_errors_of_runs_are_kept() -> None:
    runs = RunWatchdog().limited(60_000)
    with pytest.raises(ValueError, match="mine"):
        runs.call(lambda _: (_ for _ in ()).throw(ValueError("mine")))
    assert runs.call(lambda options: options.terminate) is False


def test_watchdog_late_run_gets_options_of_its_own() -> None:
    runs = RunWatchdog().limited(40)
    stopped = threading.Event()

    def late(options: object) -> object:
        while not options.terminate:  # type: ignore[attr-defined]
            stopped.wait(0.01)
        return options

    # It ended by itself after the watchdog had stopped it: its answer counts, and its options are not used again.
    first = runs.call(late)
    assert runs.call(lambda options: options) is not first


def test_watchdog_runs_on_two_threads_have_limits_of_their_own() -> None:
    runs = RunWatchdog().limited(60_000)
    seen: list[object] = []

    def outer(options: object) -> None:
        seen.append(options)
        runs.call(seen.append)

    runs.call(outer)
    assert seen[0] is not seen[1]
