"""The picture of a plan."""

from pathlib import Path
from xml.etree import ElementTree as ET

from anabranch.partition.planning.placement import Machine
from anabranch.partition.planning.planner import plan
from anabranch.partition.profiling.profile import Profile, costs_of
from anabranch.partition.report.svg import draw
from tests.partition.texts import BRANCHES, graph_of


def test_svg_shows_stages_nodes_cuts_and_costs(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    known = Profile(rows=1, run_ms=8, node_ms=(1, 2, 1, 4), tensor_bytes=dict.fromkeys("xabcy", 2048))
    costs = costs_of(graph, known)
    picture = draw(graph, costs, plan(costs, [Machine(name="<small>", count=2)], 2), title="a & b")
    texts = {text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"a & b", "stage 0", "stage 1", "4.0 KiB in 2 tensors", "1 x <small>", "Add", "2.00 ms"} <= texts
    assert "2 stages on 2 machines: a batch every 4.00 ms, each after 8.21 ms" in texts
    assert "prefers-color-scheme: dark" in picture
