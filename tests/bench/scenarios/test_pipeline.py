from pathlib import Path

from bench.harness.analysis.measures import Tally
from bench.harness.preloaded import ThroughputRun
from bench.scenarios.pipeline import CUT, WHOLE, CutCase, Pipeline, PipelineSettings
from tests.bench.concluding import conclude

CLEAN = Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0)


def run(workload: str, system: str, rate_per_s: float) -> ThroughputRun:
    return ThroughputRun(
        system=system,
        workload=workload,
        repeat=0,
        tally=CLEAN,
        core_s_per_1000={},
        other_cores=0.0,
        warm_up_requests=1,
        rate_per_s=rate_per_s,
    )


def speed_ups(tmp_path: Path, *workloads: str) -> list[tuple[str, float, bool]]:
    cases = [CutCase(name, tmp_path, {}, is_large=name == "large") for name in ("large", "small")]
    scenario = Pipeline(PipelineSettings(), cases)
    runs = [run(name, *pair) for name in workloads for pair in ((WHOLE, 10), (CUT, 17))]
    targets = conclude(scenario, runs).targets
    return [(target.workload, target.value, target.met) for target in targets if target.metric == f"rate / {WHOLE}"]


def test_pipeline_speed_up_is_a_target_of_the_large_model(tmp_path: Path) -> None:
    assert speed_ups(tmp_path, "large", "small") == [("large", 1.7, True)]
    assert speed_ups(tmp_path, "small") == []
