"""The conclusions of `detector`."""

from pathlib import Path

from bench.harness.analysis.measures import Tally
from bench.harness.preloaded import ThroughputRun
from bench.scenarios.detector import DetectorBench, DetectorSettings
from bench.systems.registry import CONFLUENT, anabranch
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn


def run(system: str, rate: float) -> ThroughputRun:
    return ThroughputRun(
        system=system,
        workload="tiny",
        repeat=0,
        tally=Tally(requests=9, answered=9, missing=0, wrong=0, repeated=0, deviation=0.0),
        core_s_per_1000={},
        other_cores=0.0,
        warm_up_requests=1,
        rate_per_s=rate,
    )


def test_detector_rate_is_a_share_of_the_loops(tiny_workload: Workload, tmp_path: Path) -> None:
    scenario = DetectorBench(DetectorSettings(), tiny_workload, tmp_path)
    runs = [run(anabranch("thread").name, 9.5), run(CONFLUENT.name, 8.0)]
    assert conclude(scenario, runs).targets == []
    scenario._loops = [9.0, 10.0, 12.0]
    result = conclude(scenario, runs)
    assert [(target.metric, target.value, target.met) for target in result.targets] == [("rate / loop", 0.95, True)]
    assert [ratio.ratio.median for ratio in result.ratios] == [1.1875]
    assert "pages/s" in drawn(result, tmp_path)
