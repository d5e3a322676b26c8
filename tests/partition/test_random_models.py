"""Random models equal their stages at any cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.planning.cut_search import candidates
from anabranch.partition.profiling.profile import Profile, costs_of
from anabranch.partition.stages.equivalence import Tolerance, prove
from anabranch.partition.stages.writer import write_stages
from tests.partition.random_models import batch, models

EXACTLY = {"float32": Tolerance(0.0, 0.0)}
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@contextmanager
def saved(model: onnx.ModelProto) -> Iterator[Graph]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        yield load_graph(path)


def draw_order(data: st.DataObject, graph: Graph) -> list[int]:
    """Draws a valid order of nodes, as downsets."""
    downsets, downset = [], 0
    while downset != graph.everything:
        free = [
            index
            for index, node in enumerate(graph.nodes)
            if not downset >> index & 1 and not node.predecessors & ~downset
        ]
        downset |= 1 << data.draw(st.sampled_from(free))
        downsets.append(downset)
    return downsets[:-1]


@pytest.mark.slow
@settings(relaxed, max_examples=150)
@given(model=models(), data=st.data())
def test_random_model_stages_equal_the_whole(model: onnx.ModelProto, data: st.DataObject) -> None:
    with saved(model) as whole:
        graph = with_some_copied(data, whole)
        downsets = dict.fromkeys(graph.stage_nodes(downset & ~graph.copied) for downset in draw_order(data, graph))
        legal = [downset for downset in downsets if graph.obstacle(downset) is None]
        count = min(len(legal), data.draw(st.integers(1, 4)))
        cuts = sorted(data.draw(st.permutations(legal))[:count], key=int.bit_count)
        event(f"{len(cuts) + 1} stages")
        limit = data.draw(st.sampled_from([0, 1 << 30]))
        batches = [batch(rows, flag, rows) for rows in (1, 3) for flag in (False, True)]
        with TemporaryDirectory() as folder:
            stages = write_stages(graph, cuts, Path(folder), max_inline_bytes=limit)
            assert prove(graph, stages, batches, tolerances=EXACTLY).largest_difference == 0.0
        assert sum(stage.nodes for stage in stages) == len(graph.nodes)


def with_some_copied(data: st.DataObject, graph: Graph) -> Graph:
    able = [index for index, node in enumerate(graph.nodes) if node.gives_the_same]
    able = [index for index in able if not set(graph.outputs) & set(graph.nodes[index].makes)]
    chosen = data.draw(st.sets(st.sampled_from(able))) if able else set()
    event(f"{min(len(chosen), 3)} copied nodes or more")
    return replace(graph, copied=sum(1 << index for index in chosen))


@settings(relaxed, max_examples=60)
@given(model=models(max_steps=6))
def test_random_model_cuts_are_all_downsets(model: onnx.ModelProto) -> None:
    with saved(model) as graph:
        if not 0 < len(graph.nodes) <= 12:
            return
        sizes = dict.fromkeys((*graph.inputs, *(name for node in graph.nodes for name in node.makes)), 1)
        known = Profile(rows=1, run_ms=1.0, node_ms=(1.0,) * len(graph.nodes), tensor_bytes=sizes)
        [cuts] = candidates(costs_of(graph, known))
        assert cuts.complete
        found = [sum(1 << int(node) for node in np.flatnonzero(members)) for members in cuts.members]
        assert sorted(found) == [nodes for nodes in range(graph.everything + 1) if graph.is_downset(nodes)]
        assert [downset.bit_count() for downset in found] == sorted(downset.bit_count() for downset in found)


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(model=models(), data=st.data())
def test_random_model_crossing_is_made_and_needed(model: onnx.ModelProto, data: st.DataObject) -> None:
    with saved(model) as graph:
        for downset in draw_order(data, graph):
            before, after = list(graph.members(downset)), list(graph.members(graph.everything & ~downset))
            there = {*graph.inputs, *(name for node in before for name in node.makes)}
            needed = {*graph.outputs, *(name for node in after for name in node.reads)}
            assert sorted(graph.crossing(downset)) == sorted(there & needed)


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(model=models(), data=st.data())
def test_random_model_stages_have_all_inputs(model: onnx.ModelProto, data: st.DataObject) -> None:
    with saved(model) as graph:
        cuts = sorted(data.draw(st.sets(st.sampled_from([0, *draw_order(data, graph)]))) - {0})
        living = set(graph.inputs)
        for part in graph.parts(cuts):
            assert set(graph.stage_inputs(part)) <= living
            assert graph.stage_outputs(part)
            living |= set(graph.stage_outputs(part))
        assert set(graph.outputs) <= living | set(graph.constant_outputs)
