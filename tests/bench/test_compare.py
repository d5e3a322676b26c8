import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from anabranch.flink_job.config import Config
from bench import compare
from bench.compare import ComparedLoad, Figures, WrongAnswers, alternate, measure, verdict_of
from bench.harness.analysis.ratio_interval import RatioInterval
from bench.harness.environment import config_text
from bench.harness.messages import ServeCommand
from bench.systems.registry import System
from bench.workloads.workload import Workload

BASE, CHANGE = System("base", checkout="/before"), System("change", checkout="/after")
KEY = "tiny", "requests/s"


def test_alternate_two_rounds_reverses_the_order() -> None:
    turns: list[tuple[str, int]] = []

    def turn(side: System, number: int) -> Figures:
        turns.append((side.kind, number))
        return {KEY: [number + (10.0 if side.kind == "change" else 0.0)]}

    base, change = alternate([BASE, CHANGE], 2, turn)
    assert turns == [("base", 0), ("change", 0), ("change", 1), ("base", 1)]
    assert (base, change) == ({KEY: [0.0, 1.0]}, {KEY: [10.0, 11.0]})


def test_ratio_interval_equal_ratios_is_a_point() -> None:
    found = RatioInterval.of([20, 40, 80], [10, 20, 40])
    assert [found.ratio, found.low, found.high] == pytest.approx([2, 2, 2])


def test_ratio_interval_is_students_t_of_the_logs() -> None:
    found = RatioInterval.of([math.exp(0.1), math.exp(0.3)], [1, 1])
    margin = 12.71 * math.sqrt(0.02) / math.sqrt(2)
    assert [found.ratio, found.low, found.high] == pytest.approx(
        [math.exp(0.2), math.exp(0.2 - margin), math.exp(0.2 + margin)]
    )


def test_ratio_interval_one_round_shows_nothing() -> None:
    assert verdict_of(RatioInterval.of([5], [1]), "requests/s") == "no difference shown"


@pytest.mark.parametrize(
    ("figure", "ratio", "verdict"),
    [("requests/s", 2, "better"), ("requests/s", 0.5, "WORSE"), ("p99 ms", 2, "WORSE"), ("p99 ms", 0.5, "better")],
)
def test_verdict_direction_depends_on_the_figure(figure: str, ratio: float, verdict: str) -> None:
    assert verdict_of(RatioInterval.of([ratio, ratio, ratio], [1, 1, 1]), figure) == verdict


class Service:
    """Answers every load at once."""

    def __init__(self, *, clean: bool) -> None:
        self.loads: list[tuple[str, float]] = []
        self._clean = clean

    def burst(self, workload: Workload, count: int) -> Any:
        self.loads.append(("burst", count))
        return self._run()

    def offer(self, workload: Workload, rate_per_s: float, seconds: float, seed: int) -> Any:
        self.loads.append(("offer", rate_per_s * seconds))
        return self._run()

    def _run(self) -> Any:
        return SimpleNamespace(
            rate_per_s=500.0,
            tally=SimpleNamespace(is_clean=self._clean),
            core_s_per_1000={"broker java": 5.0, "system java": 0.25, "system python": 0.5},
            latencies=lambda: ([1.0, 2.0, 3.0], None),
        )


def test_measure_both_scenarios_gives_rate_latency_and_cost(tiny_workload: Workload) -> None:
    service: Any = Service(clean=True)
    load = ComparedLoad(tiny_workload, 5, 7, 100)
    figures = measure(service, [load], compare.SCENARIOS, 2, 0)
    assert service.loads == [("burst", 5), ("burst", 7), ("offer", 200)]
    assert {figure: values for (_, figure), values in figures.items()} == {
        "requests/s": [500.0],
        "job's core-ms per request, throughput": [0.75],
        "p50 ms": [2.0],
        "p99 ms": [pytest.approx(2.98)],
        "job's core-ms per request, latency": [0.75],
    }


def test_measure_wrong_answers_raises(tiny_workload: Workload) -> None:
    service: Any = Service(clean=False)
    with pytest.raises(WrongAnswers, match="tiny, throughput"):
        measure(service, [ComparedLoad(tiny_workload, 5, 7, 100)], ["throughput"], 2, 0)


def test_config_text_is_the_jobs_own_configuration(tmp_path: Path) -> None:
    command = ServeCommand(
        kind="base",
        bootstrap_servers="127.0.0.1:9",
        requests_topic="in",
        responses_topic="out",
        errors_topic="bad",
        group_id="g",
        repository=str(tmp_path / 'a "quoted" folder'),
        parallelism=2,
        mode="process",
    )
    config = msgspec.toml.decode(config_text(command), type=Config)
    assert (config.kafka.bootstrap_servers, config.kafka.requests_topic, config.kafka.group_id) == (
        "127.0.0.1:9",
        "in",
        "g",
    )
    assert (config.kafka.responses_topic, config.kafka.errors_topic) == ("out", "bad")
    assert (config.job.parallelism, config.job.execution_mode) == (2, "process")
    assert config.models.repository == command.repository


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "/nowhere"], "run `make setup` there"),
        (["--base", ".", "--workloads", "vgg"], "unknown vgg; available: ffnn-1, ffnn-32, magika"),
    ],
)
def test_options_bad_value_says_what_is_available(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert message in capsys.readouterr().err.replace("\n", " ")
