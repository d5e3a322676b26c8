"""The doors scenario: what its runs are compared with."""

from pathlib import Path

import numpy as np
import pytest

from bench.harness.analysis.measures import Percentiles, Tally
from bench.scenarios.doors import KAFKA, DoorRun, DoorScenario, DoorSettings
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

AT_RATE, FFNN, MAGIKA = "ffnn 1 at 200/s", "ffnn 1, 32 connections", "magika, 32 connections"


def run(
    system: str, workload: str, *, rate: float = 200.0, p50_ms: float = 1.0, repeat: int = 0, wrong: int = 0
) -> DoorRun:
    return DoorRun(
        system=system,
        workload=workload,
        repeat=repeat,
        tally=Tally(requests=10, answered=10, missing=0, wrong=wrong, repeated=0, deviation=0.0),
        core_s_per_1000={},
        other_cores=0.0,
        rate_per_s=rate,
        latency=Percentiles(p50_ms, p50_ms, p50_ms, p50_ms, p50_ms, p50_ms),
    )


def scenario() -> DoorScenario:
    ffnn, magika = (Workload(name, [np.zeros(1, np.uint8)], [np.zeros(1, np.float32)]) for name in ("ffnn 1", "magika"))
    return DoorScenario(DoorSettings(), ffnn, magika)


def test_doors_add_to_the_latency_of_their_own_round() -> None:
    runs = [
        run(system, AT_RATE, p50_ms=p50_ms, repeat=repeat)
        for repeat, times in enumerate([(2.0, 3.5, 5.0), (4.0, 5.5, 5.0)])
        for system, p50_ms in zip((KAFKA, "gateway, HTTP", "gateway, gRPC"), times, strict=True)
    ]
    targets = conclude(scenario(), runs).targets
    assert [(target.system, target.value, target.met) for target in targets] == [
        ("gateway, HTTP", 1.5, True),
        ("gateway, gRPC", 2.0, True),
    ]


@pytest.mark.parametrize(("wrong", "met"), [(0, [True, True, False, True]), (1, [False] * 4)])
def test_doors_are_compared_with_the_same_door_of_peers(wrong: int, met: list[bool], tmp_path: Path) -> None:
    rates = {"gateway": 300.0, "MLServer": 100.0, "Ray Serve": 180.0}
    runs = [
        run(f"{server}, {door}", workload, rate=rate, wrong=wrong)
        for door in ("HTTP", "gRPC")
        for workload in (FFNN, MAGIKA)
        for server, rate in rates.items()
        if (door, workload) != ("gRPC", MAGIKA) or server != "Ray Serve"
    ]
    runs += [run("Ray Serve, gRPC", MAGIKA, rate=310.0)]
    result = conclude(scenario(), runs)
    found = {(target.system, target.workload, target.metric): (target.value, target.met) for target in result.targets}
    assert found["gateway, HTTP", FFNN, "rate / MLServer, HTTP"] == (3.0, met[0])
    assert found["gateway, HTTP", FFNN, "rate / Ray Serve, HTTP"] == (1.6667, met[1])
    assert found["gateway, gRPC", MAGIKA, "rate / Ray Serve, gRPC"] == (0.9677, met[2])
    assert found["gateway, HTTP", MAGIKA, "rate / MLServer, HTTP"] == (3.0, met[3])
    assert len(found) == 8
    assert "Ray Serve, HTTP" in drawn(result, tmp_path)
