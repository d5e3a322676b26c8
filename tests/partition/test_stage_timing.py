"""The time of stages that are run one by one."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.partition.errors import StageFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.planning.placement import Machine, Placement
from anabranch.partition.planning.planner import plan
from anabranch.partition.profiling import stage_timing as timing
from anabranch.partition.profiling.profile import costs_of, profile
from anabranch.partition.profiling.stage_timing import stage_times_ms
from tests.partition.texts import graph_of

#: The second stage has all of the work.
UNEQUAL = """
g (float[N, 64] x) => (float[N, 64] y) {
    a = Relu(x)
    b = Softmax(a)
    c = Softmax(b)
    d = Softmax(c)
    y = Softmax(d)
}
"""
#: A table of three places, which random integers up to nine do not suit.
TABLE = """
g (int64[N] x) => (float[N] y)
<float[3] table = {1, 2, 3}>
{
    a = Identity(x)
    b = Gather(table, a)
    y = Relu(b)
}
"""


def in_two(graph: Graph) -> Placement:
    return plan(costs_of(graph, profile(graph, 2)), [Machine(name="machine", count=2)], 2)


def test_stage_times_has_one_per_stage(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, UNEQUAL)
    placement = in_two(graph)
    times_ms = stage_times_ms(graph, placement, 4_096)
    assert times_ms is not None
    assert len(times_ms) == 2
    assert min(times_ms) > 0
    assert not list(tmp_path.glob("stage-*"))


def test_stage_times_suitable_batch_is_searched(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TABLE)
    placement = in_two(graph)
    assert stage_times_ms(graph, placement, 100) is not None
    assert stage_times_ms(graph, placement, 2, {"x": np.array([0, 2])}) is not None
    with pytest.raises(StageFailed, match=r"stage \d does not run"):
        stage_times_ms(graph, placement, 2, {"x": np.array([0, 9])})


def test_stage_times_large_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(tmp_path, TABLE)
    monkeypatch.setattr(timing, "MOST_BYTES", 11)
    assert stage_times_ms(graph, in_two(graph), 2) is None
