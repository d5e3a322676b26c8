"""The program from its command line to the results folder, with a scenario that takes no time."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import pytest

from bench import __main__ as program
from bench import scenarios
from bench.report.summary import read_summary
from bench.scenarios import base
from bench.scenarios.base import all_scenarios

TOY = """
from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from bench.harness.analysis.measures import Tally
from bench.harness.environment import BenchEnvironment
from bench.harness.settings import Settings
from bench.report.results import Run, ScenarioResult, keys_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.workloads.repositories import Repositories


class ToySettings(Settings, frozen=True, kw_only=True):
    toy_hops: int = 40


class ToyRun(Run, frozen=True, kw_only=True):
    hops: int


class Toy:
    name = "toy"
    method = "A toy hops."

    def __init__(self, settings: ToySettings) -> None:
        self._settings = settings

    def steps(self) -> list[Turn]:
        rounds = range(self._settings.repeats)
        return [Turn(f"round {repeat + 1}", partial(self._run, repeat), repeat=repeat) for repeat in rounds]

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        toys = [run for run in runs if isinstance(run, ToyRun)]
        rows = rows_of(toys, {"hops": [run.hops for run in toys]}, keys_of(toys))
        return Conclusion(rows, [], [row.target("hops", ">=", 30) for row in rows], {})

    def _run(self, repeat: int, environment: BenchEnvironment) -> list[ToyRun]:
        tally = Tally(requests=1, answered=1, missing=0, wrong=0, repeated=0, deviation=0.0)
        return [
            ToyRun(
                system="frog",
                workload="pond",
                repeat=repeat,
                tally=tally,
                core_s_per_1000={},
                other_cores=0.0,
                hops=self._settings.toy_hops,
            )
        ]


def draw(result: ScenarioResult) -> Figure:
    return Figure()


@scenario(Toy.name, full=ToySettings(), quick=ToySettings.quick(toy_hops=3), draw=draw)
def make(settings: ToySettings, models: Repositories) -> Made:
    return Toy(settings), models.small
"""


class Environment:
    """Measures nothing."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        assert repository.is_dir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The results folder of a benchmark with a toy scenario, which is one more file in the package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "toy.py").write_text(TOY)
    all_scenarios()
    monkeypatch.setattr(base, "_REGISTERED", dict(base._REGISTERED))
    monkeypatch.setattr(scenarios, "__path__", [*scenarios.__path__, str(tmp_path / "package")])
    monkeypatch.setattr(program, "BenchEnvironment", Environment)
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(program, "QUICK_RESULTS", tmp_path / "results" / "quick")
    yield tmp_path / "results"
    sys.modules.pop("bench.scenarios.toy", None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The program's exit code."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        program.main()
    return exit_info.value.code


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_program_scenario_of_one_file_writes_results(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--only", "toy", "--repeats", "2") == 0
    assert files(results) == ["README.md", "raw/toy.json", "summary.json", "toy.svg"]
    summary = read_summary(results)["toy"]
    assert (summary.settings["toy_hops"], summary.settings["repeats"]) == (40, 2)
    assert summary.targets[0].met
    assert summary.rows[0].metrics["hops"].median == 40
    raw = msgspec.json.decode((results / "raw" / "toy.json").read_bytes())
    assert [run["hops"] for run in raw["runs"]] == [40, 40]
    assert "![toy](toy.svg)" in (results / "README.md").read_text()


def test_program_short_of_time_takes_the_first_round(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--only", "toy", "--repeats", "3", "--minutes", "1") == 0
    assert "fewer rounds" in capsys.readouterr().out
    raw = msgspec.json.decode((results / "raw" / "toy.json").read_bytes())
    assert [run["repeat"] for run in raw["runs"]] == [0, 1, 2], "they took no time"
    assert run(monkeypatch, "--only", "toy", "--repeats", "3", "--minutes", "0") == 0
    raw = msgspec.json.decode((results / "raw" / "toy.json").read_bytes())
    assert [run["repeat"] for run in raw["runs"]] == [0]


def test_program_quick_writes_beside_the_results(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--only", "toy", "--set", "toy_hops=40") == 0
    committed = {name: (results / name).read_bytes() for name in files(results)}
    assert run(monkeypatch, "--only", "toy", "--quick") == 0, "a missed target of a quick run is not a failure"
    assert {name: (results / name).read_bytes() for name in files(results) if "quick" not in name} == committed
    summary = read_summary(results / "quick")["toy"]
    assert (summary.targets[0].met, summary.settings["toy_hops"]) == (False, 3)


def test_program_missed_target_exits_with_two(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--only", "toy", "--set", "toy_hops=4") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "toy_hop=4"], "unknown setting toy_hop; available: burst_share, load_seconds,"),
        (["--set", "toy_hops=many"], "--set: Expected `int`, got `str` - at `$.toy_hops`"),
        (["--set", "toy_hops"], "'toy_hops' has no '=': write NAME=VALUE"),
        (["--modes", "fork"], "unknown fork; available: thread, process"),
    ],
)
def test_program_bad_option_says_what_to_do(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "--only", "toy", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not results.exists()


def test_register_name_twice_raises(results: Path, tmp_path: Path) -> None:
    (tmp_path / "package" / "toy_again.py").write_text(TOY)
    with pytest.raises(ValueError, match="'toy' is registered twice"):
        all_scenarios()


def test_gitignore_has_raw_and_quick_results() -> None:
    root = Path(program.__file__).parents[1]
    lines = (root / ".gitignore").read_text().splitlines()
    assert {"/bench/results/raw/", "/bench/results/quick/"} <= set(lines)
