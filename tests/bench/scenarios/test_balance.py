"""The balance scenario: whose time counts, and what follows from it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anabranch.operators.backends.fake import FakeSession
from anabranch.schemas.tensors import Array
from bench.harness.analysis.measures import Tally
from bench.harness.session_time import BusyClock, BusySession, read_busy_s
from bench.scenarios.balance import Balance, BalanceRun, BalanceSettings
from bench.workloads.workload import Workload

ON, OFF = "anabranch, thread, 2 tasks", "anabranch, thread, 2 tasks, no balance"
TINY = Workload("tiny", [np.zeros(20, np.uint8)], [np.zeros(1, np.float32)])


def double(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": 2 * inputs["x"]}


def test_busy_session_slowdown_repeats_the_batch(tmp_path: Path) -> None:
    inner = FakeSession(double)
    session = BusySession(inner, BusyClock(tmp_path / "1.busy"), runs=4)
    [y] = session.run(["y"], {"x": np.ones((3, 1))})
    assert y.tolist() == [[2.0]] * 3
    assert inner.batches == [3] * 4


def test_busy_clock_zeros_are_not_counted(tmp_path: Path) -> None:
    idle, busy = BusyClock(tmp_path / "1.busy"), BusyClock(tmp_path / "2.busy")
    busy.add(1.5)
    busy.add(0.25)
    inner = FakeSession(double)
    BusySession(inner, idle, runs=4).run(["y"], {"x": np.zeros((3, 1))})
    assert read_busy_s(tmp_path) == [0.0, 1.75]
    assert inner.batches == [3]


def run(system: str, workload: str, busy_s: list[float], rate: float) -> BalanceRun:
    return BalanceRun(
        system=system,
        workload=workload,
        repeat=0,
        tally=Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0),
        core_s_per_1000={},
        other_cores=0.0,
        rate_per_s=rate,
        busy_s=busy_s,
    )


def test_balance_skew_is_a_target_with_offloading() -> None:
    scenario = Balance(BalanceSettings(), TINY, TINY)
    runs = [
        run(ON, "one partition", [7.0, 9.0], 200.0),
        run(OFF, "one partition", [0.0, 20.0], 100.0),
        run(ON, "one task 4x slower", [5.0, 15.0], 50.0),
    ]
    conclusion = scenario.conclude(runs)
    assert [(target.workload, target.value, target.met) for target in conclusion.targets] == [
        ("one partition", 1.125, True),
        ("one task 4x slower", 1.5, False),
    ]
    assert [(ratio.workload, ratio.ratio.median) for ratio in conclusion.ratios] == [("one partition", 2.0)]
    assert conclusion.rows[1].metrics["busiest_over_mean"].median == 2.0
