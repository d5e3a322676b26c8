"""The conclusions of `flows` and `sql`."""

from pathlib import Path

import numpy as np
import pytest

from bench.harness.analysis.measures import Tally
from bench.harness.preloaded import ThroughputRun
from bench.report.results import Run
from bench.scenarios.flows import FlowsBench, FlowSettings
from bench.scenarios.sql import Sql, SqlSettings
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn


def workload(name: str, size_bytes: int = 1000) -> Workload:
    return Workload(name, [np.zeros(size_bytes, np.uint8)], [np.zeros(1, np.float32)], wire="json")


def run(name: str, system: str, rate: float, repeat: int = 0, wrong: int = 0) -> ThroughputRun:
    return ThroughputRun(
        system=system,
        workload=name,
        repeat=repeat,
        tally=Tally(requests=9, answered=9, missing=0, wrong=wrong, repeated=0, deviation=0.0),
        core_s_per_1000={"system java": 0.02, "broker java": 0.01},
        other_cores=0.0,
        warm_up_requests=1,
        rate_per_s=rate,
    )


@pytest.fixture
def flows() -> FlowsBench:
    return FlowsBench(
        FlowSettings(modes=("thread", "process"), repeats=4, least_rounds=2),
        [("json", 1000, workload("JSON 1 KB")), ("json", 10_000, workload("JSON 10 KB", 10_000))],
    )


def rounds(job: float, wrong: int = 0) -> list[Run]:
    rates = {
        "anabranch": job,
        "PyFlink map": 10.0,
        "infer in a PyFlink job": 19.0,
    }
    runs: list[Run] = []
    for repeat in range(2):
        for mode in ("thread", "process"):
            runs += [
                run("JSON 1 KB", f"{kind}, {mode}, 1 task", rate, repeat, wrong if kind == "anabranch" else 0)
                for kind, rate in rates.items()
            ]
        runs += [run("JSON 1 KB", kind, 20.0, repeat) for kind in ("event worker", "event worker, commits seldom")]
        runs += [run("JSON 10 KB", "anabranch, thread, 1 task", 5.0, repeat)]
    return runs


def test_flows_compare_a_job_with_peers_of_its_mode(flows: FlowsBench, tmp_path: Path) -> None:
    result = conclude(flows, rounds(20.0))
    found = {(target.system, target.metric): (target.value, target.limit, target.met) for target in result.targets}
    assert found == {
        ("anabranch, thread, 1 task", "rate / PyFlink map, thread, 1 task"): (2.0, 2.0, True),
        ("anabranch, process, 1 task", "rate / PyFlink map, process, 1 task"): (2.0, 2.0, True),
        ("anabranch, thread, 1 task", "rate / event worker"): (1.0, 1.0, True),
        ("infer in a PyFlink job, thread, 1 task", "rate / anabranch, thread, 1 task"): (0.95, 0.9, True),
        ("infer in a PyFlink job, process, 1 task", "rate / anabranch, process, 1 task"): (0.95, 0.9, True),
    }
    assert {ratio.interval for ratio in result.ratios if ratio.peer == "event worker"} == {(1.0, 1.0)}
    assert "core-µs" in drawn(result, tmp_path)


def test_flows_wrong_events_miss_the_targets(flows: FlowsBench) -> None:
    met = {target.system: target.met for target in conclude(flows, rounds(30.0, wrong=1)).targets}
    assert not met["anabranch, thread, 1 task"]


def test_flows_other_sizes_have_fewer_rounds_and_no_target(flows: FlowsBench) -> None:
    labels = [step.label for step in flows.steps()]
    assert sum("JSON 10 KB, anabranch, thread" in label for label in labels) == 1
    assert sum("JSON 1 KB, anabranch, thread" in label for label in labels) == 4


def test_sql_compares_rows_together_with_rows_apart(tmp_path: Path) -> None:
    runs = [
        run("rows", system, rate, repeat)
        for repeat in range(3)
        for system, rate in (("ML_PREDICT", 40.0), ("ML_PREDICT, a row a request", 10.0))
    ]
    result = conclude(Sql(SqlSettings(), workload("rows", 200)), runs)
    [target] = result.targets
    assert (target.metric, target.value, target.met) == ("rate / ML_PREDICT, a row a request", 4.0, True)
    assert "rows a second" in drawn(result, tmp_path)
