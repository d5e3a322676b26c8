"""Results of scenarios from runs that a test makes up."""

from collections.abc import Sequence
from pathlib import Path

from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult
from bench.scenarios.base import Scenario, all_scenarios


def conclude(scenario: Scenario, runs: Sequence[Run]) -> ScenarioResult:
    """A scenario's result of some runs."""
    conclusion = scenario.conclude(runs)
    return ScenarioResult(
        scenario=scenario.name,
        command="python -m bench",
        commit="0123456789",
        date="2026-01-01T00:00:00+00:00",
        versions={"python": "3.11"},
        machine={"cpu": "a", "cores": "2", "memory_gb": "8", "system": "b"},
        settings=Settings().values(),
        method=scenario.method,
        targets=conclusion.targets,
        ratios=conclusion.ratios,
        rows=conclusion.rows,
        limits=conclusion.limits,
        failures=[],
        runs=list(runs),
    )


def drawn(result: ScenarioResult, folder: Path) -> str:
    """The SVG of a result's figure."""
    draw = all_scenarios()[result.scenario].draw
    assert draw is not None
    figure = draw(result)
    assert figure is not None
    return plots.save(figure, folder, result.scenario).read_text()
