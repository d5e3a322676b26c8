from pathlib import Path

import pytest

from bench.harness.analysis.measures import Tally
from bench.harness.settings import Settings
from bench.scenarios.cost import RATES_PER_S, ROWS, Cost, CostRun
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

CLEAN = Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0)


def run_at(system: str, rate_per_s: float, rows: int, core_s: float, repeat: int) -> CostRun:
    return CostRun(
        system=system,
        workload="tiny",
        repeat=repeat,
        tally=CLEAN,
        core_s_per_1000={"system java": core_s},
        other_cores=0.0,
        rate_per_s=rate_per_s,
        rows=rows,
        core_s_per_1000_rows=core_s,
    )


def runs_of(scenario: Cost, factor: float) -> list[CostRun]:
    """Each doubling of the load makes a request dearer by this factor; rows get cheaper together."""
    runs = []
    for repeat in range(3):
        for place, rate in enumerate(RATES_PER_S):
            runs.append(run_at(scenario._at(rate), rate, 1, (1 + repeat) * factor**place, repeat))
        for place, rows in enumerate(ROWS):
            runs.append(run_at(scenario._of(rows), 100, rows, 0.5**place, repeat))
    return runs


@pytest.mark.parametrize(("factor", "met"), [(0.8, True), (1.04, True), (1.2, False)])
def test_cost_per_doubling_is_the_worst(tiny_workload: Workload, factor: float, met: bool) -> None:
    scenario = Cost(Settings(), dict.fromkeys(ROWS, tiny_workload))
    conclusion = scenario.conclude(runs_of(scenario, factor))
    (target,) = conclusion.targets
    assert target.value == pytest.approx(factor, abs=1e-3)
    assert target.met == met
    by_rows = [ratio.ratio.median for ratio in conclusion.ratios if "row" in ratio.system]
    assert by_rows == [pytest.approx(0.5)] * (len(ROWS) - 1)


def test_cost_result_is_drawn(tmp_path: Path, tiny_workload: Workload) -> None:
    scenario = Cost(Settings(), dict.fromkeys(ROWS, tiny_workload))
    assert "<svg" in drawn(conclude(scenario, runs_of(scenario, 1.0)), tmp_path)
