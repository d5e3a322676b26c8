"""What a scenario makes of runs that a test made up."""

from collections.abc import Sequence

from bench.harness.settings import Settings
from bench.report.results import AnyRun, ScenarioResult
from bench.scenarios.base import Scenario


def conclude(scenario: Scenario, runs: Sequence[AnyRun]) -> ScenarioResult:
    """The result file's content."""
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
        runs=[*runs],
    )
