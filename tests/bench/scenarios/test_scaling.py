"""The simulation of many nodes, and what the scaling study makes of it."""

from pathlib import Path

import pytest

from anabranch.partition.planning.placement import Machine
from anabranch.partition.planning.planner import plan
from anabranch.partition.profiling.costs import CostGraph, TensorCost
from bench.harness.analysis.measures import Tally
from bench.harness.analysis.pipeline_simulation import Feed, simulate
from bench.scenarios.scaling import Scaling, ScalingRun

WIDE = Feed(input_bytes=1, output_bytes=1, bandwidth_bytes_per_s=1e12)
#: 3 ms, 4 ms and 8 ms with 2,000 bytes between the first two.
GRAPH = CostGraph(
    (3.0, 4.0, 8.0), (TensorCost(2_000, 0, (1,)), TensorCost(1, 1, (2,)), TensorCost(1, 2, (), is_output=True))
)


@pytest.mark.parametrize(
    ("machines", "stages"),
    [
        ([Machine(name="a", count=3)], 3),
        ([Machine(name="a", count=6)], 3),
        ([Machine(name="a", count=4)], None),
        ([Machine(name="slow", count=3, bandwidth_bytes_per_s=125_000.0)], 3),
        ([Machine(name="a", count=2), Machine(name="b", speed=2.0, count=2)], 2),
    ],
)
def test_simulate_no_variation_equals_the_bottleneck(machines: list[Machine], stages: int | None) -> None:
    placement = plan(GRAPH, machines, stages)
    rate_per_s = simulate(placement.stages, WIDE, batches=2_000, variation=0.0, seed=0)
    assert rate_per_s == pytest.approx(1000 / placement.bottleneck_ms, rel=0.01)


def test_simulate_variation_is_not_quicker() -> None:
    placement = plan(GRAPH, [Machine(name="a", count=8)], 3)
    steady, varied = (
        simulate(placement.stages, WIDE, batches=4_000, variation=variation, seed=1) for variation in (0.0, 0.5)
    )
    assert 0.7 * steady < varied < 1.01 * steady


@pytest.mark.parametrize("feed", [Feed(1_000, 1, 1e4), Feed(1, 1_000, 1e4)])
def test_simulate_slow_feed_or_drain_is_the_bottleneck(feed: Feed) -> None:
    placement = plan(GRAPH, [Machine(name="a", count=9)])
    assert simulate(placement.stages, feed, batches=1_000, variation=0.0, seed=0) == pytest.approx(10)


def run(nodes: int, rate_per_s: float) -> ScalingRun:
    return ScalingRun(
        system="as planned",
        workload="magika",
        repeat=0,
        tally=Tally(requests=1, answered=1, missing=0, wrong=0, repeated=0, deviation=0.0),
        core_s_per_1000={},
        other_cores=0.0,
        nodes=nodes,
        used=nodes,
        stages=1,
        rate_per_s=rate_per_s,
        predicted_per_s=2 * rate_per_s,
        held_up_by="computing" if nodes < 8 else "feeding",
    )


def test_scaling_row_says_where_it_stops(tmp_path: Path) -> None:
    rates = {1: 10.0, 2: 20.0, 4: 35.0, 8: 40.0, 16: 41.0}
    (row,) = Scaling(tmp_path).conclude([run(nodes, rate) for nodes, rate in rates.items()]).rows
    assert row.system == "as planned: then feeding"
    assert {name: spread.median for name, spread in row.metrics.items()} == {
        "rate_per_s": 41,
        "stops_at_nodes": 4,
        "speed_up_at_stop": 3.5,
        "speed_up_at_1024": 4.1,
        "simulated_to_predicted": 0.5,
    }
