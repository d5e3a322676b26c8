"""A peer that cannot be had on a machine is left out with a clear line, and never silently."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench import __main__ as main
from bench.harness.environment import BenchEnvironment
from bench.harness.settings import Settings
from bench.report.results import ScenarioResult
from bench.report.tables import verdicts
from bench.scenarios.base import Conclusion, Turn
from bench.systems import peer_installation
from bench.systems.flink import java_map
from bench.systems.peer_installation import PeerMissing
from bench.systems.registry import ENVIRONMENTS, JAVA, JAVA_KINDS, MODULES, RAY_SERVE
from deploy import environments


def test_kinds_with_installations_are_known() -> None:
    assert set(ENVIRONMENTS) | JAVA_KINDS <= set(MODULES)
    for name in ENVIRONMENTS.values():
        assert peer_installation.lock_of(name).is_file()


def test_interpreter_of_worker_is_this_python() -> None:
    assert peer_installation.interpreter_of("confluent-kafka worker") == Path(sys.executable)


def test_interpreter_missing_package_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerMissing, match=r"Ray Serve cannot be set up on this machine: .* uv was not found; run"):
        peer_installation.interpreter_of(RAY_SERVE.kind)


def test_interpreter_missing_jars_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_map, "_TOOLS", tmp_path)
    with pytest.raises(PeerMissing, match=r"Java Flink map cannot be set up on this machine: .*`make setup`"):
        peer_installation.interpreter_of(JAVA.kind)


def test_program_missing_peer_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(environment: BenchEnvironment) -> list[object]:
        raise PeerMissing("no such package")

    result, stopped = _result_of(Turn("round 1: Ray Serve", refuse), tmp_path, monkeypatch)  # type: ignore[arg-type]
    assert not stopped
    assert result.skipped == ["round 1: Ray Serve: no such package"]
    assert result.failures == []
    assert list(verdicts(result)) == ["SKIPPED: round 1: Ray Serve: no such package"]


def test_program_interrupted_keeps_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(environment: BenchEnvironment) -> list[object]:
        raise KeyboardInterrupt

    result, stopped = _result_of(Turn("round 1: Ray Serve", interrupt), tmp_path, monkeypatch)  # type: ignore[arg-type]
    assert stopped
    assert result.failures == ["round 1: Ray Serve: stopped here, by hand"]


def _result_of(step: Turn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ScenarioResult, bool]:
    class OneStep:
        name = "throughput"
        method = ""

        def steps(self) -> list[Turn]:
            return [step]

        def conclude(self, runs: object) -> Conclusion:
            return Conclusion([], [], [], {})

    monkeypatch.setattr(sys, "argv", ["bench"])
    return main._run(OneStep(), Settings.quick(), BenchEnvironment(folder, folder), Console(quiet=True), 60.0)
