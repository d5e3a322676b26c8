"""Plans equal the best of all plans."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning import cut_search, planner
from anabranch.partition.planning import heterogeneous as unequal
from anabranch.partition.planning.cut_search import candidates, orders
from anabranch.partition.planning.placement import Machine, Placement
from anabranch.partition.planning.planner import plan, plan_timed
from anabranch.partition.profiling.costs import CostGraph, ParameterCost, TensorCost


@st.composite
def graphs(draw: st.DrawFn, least: int = 1, most: int = 6) -> CostGraph:
    size = draw(st.integers(least, most))
    tensors = [TensorCost(draw(st.integers(0, 9)), None, tuple(draw(st.sets(st.integers(0, size - 1)))))]
    for node in range(size):
        users = draw(st.sets(st.integers(node + 1, size - 1))) if node + 1 < size else set()
        is_output, may_cross = not users or draw(st.booleans()), draw(st.sampled_from([True, True, True, False]))
        tensors.append(TensorCost(draw(st.integers(0, 9)), node, tuple(sorted(users)), is_output, may_cross))
    parameters = [
        ParameterCost(draw(st.integers(1, 9)), tuple(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))))
        for _ in range(draw(st.integers(0, 4)))
    ]
    ms = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    read = [each.producer for each in tensors if each.producer is not None and not each.is_output]
    copied = draw(st.sets(st.sampled_from(read))) if read else set()
    return CostGraph(tuple(map(float, ms)), tuple(tensors), tuple(parameters), frozenset(copied))


def machine(name: str = "a", **fields: Any) -> Machine:
    return Machine(name=name, **({"bandwidth_bytes_per_s": 1000.0, "latency_ms": 0.5} | fields))


MACHINES = st.builds(
    machine,
    speed=st.sampled_from([0.5, 1.0, 2.0]),
    memory_bytes=st.sampled_from([None, 10, 20, 40]),
    bandwidth_bytes_per_s=st.sampled_from([1000.0, 3000.0]),
)


def chains(graph: CostGraph) -> Iterator[list[set[int]]]:
    """Lists every way to cut a graph, by definition; copied nodes are in no cut."""
    own = sorted(set(range(len(graph.ms))) - graph.copied)
    downsets = [
        set(chosen)
        for count in range(len(own) + 1)
        for chosen in combinations(own, count)
        if all(each.producer in {None, *chosen} for node in chosen for each in received(graph, {node}))
        if count in (0, len(own)) or all(each.may_cross for each in crossing(graph, set(chosen)))
    ]

    def extend(chain: list[set[int]]) -> Iterator[list[set[int]]]:
        if len(chain[-1]) == len(own):
            yield chain
        for downset in downsets:
            if downset > chain[-1]:
                yield from extend([*chain, downset])

    return extend([set()])


def run_by(graph: CostGraph, nodes: set[int]) -> set[int]:
    """Nodes that run where the given ones do: also the copied ones that they need."""
    needed = {each.producer for each in graph.tensors if nodes & set(each.users)} & graph.copied
    return nodes if needed <= nodes else run_by(graph, nodes | {each for each in needed if each is not None})


def received(graph: CostGraph, nodes: set[int]) -> list[TensorCost]:
    there = run_by(graph, nodes)
    return [each for each in graph.tensors if there & set(each.users) and each.producer not in graph.copied]


def crossing(graph: CostGraph, downset: set[int]) -> list[TensorCost]:
    later = received(graph, set(range(len(graph.ms))) - graph.copied - downset)
    return [
        each
        for each in graph.tensors
        if (each.producer is None or each.producer in downset) and (each.is_output or each in later)
    ]


def cost(graph: CostGraph, chain: Sequence[set[int]], crews: Sequence[Sequence[Machine]]) -> tuple[float, float, int]:
    """Bottleneck, latency and machines, as the planner's module has it; infinite where it does not fit."""
    moved = [sum(each.size_bytes for each in crossing(graph, downset)) for downset in chain]
    moved[0] = moved[-1] = 0
    bottleneck = latency = 0.0
    last = len(crews) - 1
    for number, ((before, after), crew) in enumerate(zip(pairwise(chain), crews, strict=True)):
        stage = run_by(graph, after - before)
        ms, speed = sum(graph.ms[each] for each in stage), sum(each.speed for each in crew)
        held = sum(each.size_bytes for each in graph.parameters if stage & set(each.users))
        held += moved[number] + moved[number + 1]
        if any(each.memory_bytes is not None and each.memory_bytes < held for each in crew):
            return float("inf"), float("inf"), 0
        for each in crew:
            share = each.speed / speed
            links = [moved[number + side] * 1000 / each.bandwidth_bytes_per_s * share for side in (0, 1)]
            bottleneck = max(bottleneck, ms / speed, *links)
        latency += max(
            ms / each.speed
            + (moved[number] + moved[number + 1]) * 1000 / each.bandwidth_bytes_per_s
            + ((number > 0) + (number < last)) * each.latency_ms
            for each in crew
        )
    return bottleneck, latency, sum(map(len, crews))


def best(found: Iterator[tuple[float, float, int]]) -> tuple[float, float, int]:
    return min(found, key=lambda each: (round(each[0], 6), round(each[1], 6), each[2]), default=(float("inf"), 0.0, 0))


def figures(placement: Placement) -> tuple[float, float, int]:
    return placement.bottleneck_ms, placement.latency_ms, placement.machine_count


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(graphs(), MACHINES, st.integers(1, 4), st.sampled_from([None, 1, 2, 3]))
def test_plan_equal_machines_is_optimal(graph: CostGraph, machine: Machine, count: int, stages: int | None) -> None:
    expected = best(
        cost(graph, chain, [[machine] * replicas for replicas in crews])
        for chain in chains(graph)
        if len(chain) - 1 == (stages or len(chain) - 1) and len(chain) - 1 <= count
        for crews in product(range(1, count + 1), repeat=len(chain) - 1)
        if sum(crews) <= count
    )
    try:
        placement = plan(graph, [msgspec.structs.replace(machine, count=count)], stages)
    except NoPlan:
        assert expected[0] == float("inf")
        return
    assert placement.exact
    assert figures(placement) == pytest.approx(expected)
    check(graph, placement)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(graphs(), st.lists(MACHINES, min_size=2, max_size=3), st.sampled_from([None, 1, 2]))
def test_plan_unequal_machines_has_lowest_bottleneck(
    graph: CostGraph, machines: list[Machine], stages: int | None
) -> None:
    machines = [msgspec.structs.replace(each, name=str(number)) for number, each in enumerate(machines)]
    expected = best(
        cost(graph, chain, [[one for one, place in zip(machines, places, strict=True) if place == stage]
                            for stage in range(len(chain) - 1)])
        for chain in chains(graph)
        if len(chain) - 1 == (stages or len(chain) - 1)
        for places in product(range(-1, len(chain) - 1), repeat=len(machines))
        if set(range(len(chain) - 1)) <= set(places)
    )  # fmt: skip
    try:
        placement = plan(graph, machines, stages)
    except NoPlan:
        assert expected[0] == float("inf")
        return
    assert placement.exact
    assert placement.bottleneck_ms == pytest.approx(expected[0])
    check(graph, placement)
    names = [each.name for stage in placement.stages for each in stage.replicas]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(graphs(), st.lists(MACHINES, min_size=1, max_size=2), st.sampled_from([None, 2, 3]))
def test_plan_without_all_cuts_finds_the_best_of_few(
    graph: CostGraph, machines: list[Machine], stages: int | None
) -> None:
    machines = [msgspec.structs.replace(each, name=str(name), count=2) for name, each in enumerate(machines)]
    try:
        expected = plan(graph, machines, stages)
    except NoPlan:
        with partial_cuts(), pytest.raises(NoPlan):
            plan(graph, machines, stages)
        return
    with partial_cuts():
        assert not any(cuts.complete for cuts in candidates(graph))
        placement = plan(graph, machines, stages)
    assert placement.bottleneck_ms == pytest.approx(expected.bottleneck_ms)
    if len(machines) == 1 and not placement.exact:  # the search ends at the lowest bottleneck that there can be
        assert figures(placement) == pytest.approx(figures(expected))
    check(graph, placement)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(graphs(8, 12), MACHINES, st.integers(2, 3))
def test_plan_is_as_good_as_any_order(graph: CostGraph, machine: Machine, stages: int) -> None:
    """Cuts along an order are never better than the plan, however few neighbours it looks at."""
    cuts = [
        [set(), *(set(order[: end + 1]) for end in ends), set(order)]
        for order in orders(graph)
        for ends in combinations(range(len(order) - 1), stages - 1)
    ]
    expected = best(
        cost(graph, chain, [[machine]] * stages)
        for chain in cuts
        if all(each.may_cross for downset in chain[1:-1] for each in crossing(graph, downset))
    )
    with partial_cuts(_MOST_NEIGHBOURS=0):
        try:
            placement = plan(graph, [msgspec.structs.replace(machine, count=stages)], stages)
        except NoPlan:
            assert expected[0] == float("inf")
            return
    assert placement.bottleneck_ms <= expected[0] * (1 + 1e-9)
    check(graph, placement)


@contextmanager
def partial_cuts(**limits: int) -> Iterator[None]:
    """Keeps the planner from listing all cuts, as if there were too many."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planner, "_NEAR", 0.0)
        for name, most in ({"_MOST_CUTS": 0, "_MOST_COARSE": 3} | limits).items():
            patched.setattr(cut_search, name, most)
        yield


def check(graph: CostGraph, placement: Placement) -> None:
    """A placement is a chain of downsets, and costs what it says."""
    chain: list[set[int]] = [set()]
    for stage in placement.stages:
        chain.append(chain[-1] | set(stage.nodes) - graph.copied)
    every = sorted(node for stage in placement.stages for node in stage.nodes)
    assert every == list(range(len(graph.ms)))
    assert figures(placement) == pytest.approx(cost(graph, chain, [stage.replicas for stage in placement.stages]))


def line(*ms: float, size_bytes: int = 0, parameter_bytes: int = 0) -> CostGraph:
    """Nodes in a row."""
    tensors = [TensorCost(size_bytes, each, (each + 1,)) for each in range(len(ms) - 1)]
    parameters = [ParameterCost(parameter_bytes, (each,)) for each in range(len(ms))]
    return CostGraph(ms, (*tensors, TensorCost(0, len(ms) - 1, (), is_output=True)), tuple(parameters))


def test_plan_model_over_memory_is_cut_to_fit() -> None:
    placement = plan(line(1, 1, 1, 1, parameter_bytes=10), [machine(memory_bytes=25, count=4)])
    assert [(stage.parameter_bytes, len(stage.replicas)) for stage in placement.stages] == [(20, 2), (20, 2)]
    assert placement.bottleneck_ms == 1


@pytest.mark.parametrize(
    ("graph", "machines", "stages", "why"),
    [
        (line(1, 1), [machine(count=9)], 3, "3 stages are more than the model can be cut into: 2 at most"),
        (line(1, 1, 1), [machine(count=2)], 3, "3 stages need a machine each, and there are 2"),
        (line(1, 1, parameter_bytes=30), [machine(memory_bytes=29)], None, "a stage of 30 bytes cannot be cut further"),
        (line(1, 1, parameter_bytes=30), [machine(memory_bytes=30)], None, "the model needs 2 machines of the largest"),
        (
            line(1, 1, parameter_bytes=30),
            [machine(memory_bytes=40, count=2)],
            1,
            "does not fit the memory of the machines",
        ),
        (line(1, 1, parameter_bytes=30), [machine(memory_bytes=40), machine("b", memory_bytes=9)], None, "not fit"),
        (CostGraph((), ()), [machine()], None, "the model has no nodes"),
    ],
)
def test_plan_impossible_is_explained(graph: CostGraph, machines: list[Machine], stages: int | None, why: str) -> None:
    with pytest.raises(NoPlan, match=why):
        plan(graph, machines, stages)


def test_plan_wide_cut_is_avoided() -> None:
    tensors = (TensorCost(5_000, 0, (1,)), TensorCost(1, 1, (2,)), TensorCost(0, 2, (), is_output=True))
    placement = plan(CostGraph((4.0, 1.0, 2.0), tensors), [machine(count=2)], 2)
    assert [stage.nodes for stage in placement.stages] == [(0, 1), (2,)]


def test_cuts_parallel_branches_multiply() -> None:
    chains = [range(4 * branch, 4 * branch + 4) for branch in range(3)]
    tensors = [TensorCost(1, node, (node + 1,)) for chain in chains for node in chain[:-1]]
    tensors += [TensorCost(1, chain[-1], (12,)) for chain in chains]
    [cuts] = candidates(CostGraph((1.0,) * 13, tuple(tensors)))
    assert cuts.complete
    assert len(cuts) == len({tuple(members) for members in cuts.members}) == 5**3 + 1


def test_cuts_too_many_follow_good_orders() -> None:
    wide = 16  # 2 ** 16 downsets in its midst
    tensors = [TensorCost(1, 0, tuple(range(1, wide + 1)))]
    tensors += [TensorCost(1, each, (wide + 1,)) for each in range(1, wide + 1)]
    graph = CostGraph((1.0,) * (wide + 2), (*tensors, TensorCost(1, wide + 1, (), is_output=True)))
    assert not any(cuts.complete for cuts in candidates(graph))
    placement = plan(graph, [machine(count=3, bandwidth_bytes_per_s=1e9)], 3)
    assert placement.exact  # A third of the model in each stage.
    assert placement.bottleneck_ms == 6
    assert [len(stage.nodes) for stage in placement.stages] == [6, 6, 6]


def test_plan_free_nodes_multiply_nothing() -> None:
    """Each of 24 layers reads a mask that a node without cost makes, whenever it runs: 2 ** 24 downsets and more."""
    layers, mask = range(24), 24
    order = {"mask": 0} | {f"free {each}": 1 + each for each in layers} | {each: 25 + each for each in layers}
    tensors = [TensorCost(9, order["mask"], tuple(order[f"free {each}"] for each in layers))]
    for each in layers:
        tensors.append(TensorCost(9, order[f"free {each}"], (order[each],)))
        users = (order[each + 1],) if each + 1 in layers else ()
        tensors.append(TensorCost(9, order[each], users, is_output=not users))
    graph = CostGraph((0.0,) * (1 + mask) + (1.0,) * 24, tuple(tensors))
    lattice, *_ = candidates(graph)
    assert len(lattice) == 24 + 1
    assert plan(graph, [machine(count=4, bandwidth_bytes_per_s=1e6)], 4).bottleneck_ms == 6


def test_plan_copied_shape_never_crosses() -> None:
    """All layers read a shape that may not cross: without a copy in each stage, no cut is legal."""
    tensors = [TensorCost(100, None, (0, 1)), TensorCost(8, 0, (1, 2, 3, 4), may_cross=False)]
    tensors += [TensorCost(40, each, (each + 1,)) for each in (1, 2, 3)] + [TensorCost(40, 4, (), is_output=True)]
    graph = CostGraph((0.5, 2.0, 2.0, 2.0, 2.0), tuple(tensors), (ParameterCost(7, (0,)),))
    machines = [machine(count=2, bandwidth_bytes_per_s=1e6)]
    with pytest.raises(NoPlan, match="2 stages are more than the model can be cut into: 1 at most"):
        plan(graph, machines, 2)
    first, second = plan(replace(graph, copied=frozenset({0})), machines, 2).stages
    assert (first.nodes, first.ms, first.output_bytes, first.parameter_bytes) == ((0, 1, 2), 4.5, 140, 7)
    assert (second.nodes, second.ms, second.parameter_bytes) == ((3, 4), 4.5, 7)


def test_plan_copies_count_in_latency() -> None:
    tensors = [TensorCost(0, None, (0, 1)), TensorCost(1, 0, (2, 3), may_cross=False)]
    tensors += [TensorCost(1, each, (each + 1,)) for each in (1, 2, 3)] + [TensorCost(1, 4, (), is_output=True)]
    graph = CostGraph((0.5, 9.0, 1.0, 1.0, 1.0), tuple(tensors), copied=frozenset({0}))
    stages = plan(graph, [machine(count=3)], 3).stages
    assert [stage.nodes for stage in stages] == [(1,), (0, 2, 3), (4,)]


@pytest.mark.slow
def test_plan_many_unequal_machines_is_near_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = line(*[1.0] * 40, parameter_bytes=1)
    machines = [machine(str(number), speed=1 + number / 10, memory_bytes=8) for number in range(9)]
    monkeypatch.setattr(unequal, "_MOST_CUTS", 20)
    placement = plan(graph, machines)
    assert not placement.exact
    check(graph, placement)
    assert placement.bottleneck_ms <= 1.25 * sum(graph.ms) / sum(each.speed for each in machines)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(graphs(), st.lists(MACHINES, min_size=1, max_size=2), st.sampled_from([None, 2, 3]), st.data())
def test_plan_timed_is_corrected_by_stage_times(
    graph: CostGraph, machines: list[Machine], stages: int | None, data: st.DataObject
) -> None:
    machines = [msgspec.structs.replace(each, name=str(name), count=2) for name, each in enumerate(machines)]
    size = len(graph.ms)
    real_ms = data.draw(st.lists(st.floats(0.1, 9), min_size=size, max_size=size))
    timed: list[Placement] = []

    def time_stages(placement: Placement) -> list[float]:
        times_ms = []
        for stage in placement.stages:
            own = set(stage.nodes) - graph.copied
            copied_ms = sum(graph.ms[each] for each in run_by(graph, own) - own)
            times_ms.append(copied_ms + sum(real_ms[each] for each in own))
        timed.append(placement.with_times(times_ms))
        return times_ms

    try:
        first = plan(graph, machines, stages)
    except NoPlan:
        with pytest.raises(NoPlan):
            plan_timed(graph, machines, stages, time_stages)
        return
    assert first.with_times([stage.ms for stage in first.stages]) == first
    corrected, placement = plan_timed(graph, machines, stages, time_stages)
    check(corrected, placement)
    assert len({tuple(each.downsets) for each in timed}) == len(timed) <= 4
    if timed:
        least_ms = min(each.bottleneck_ms for each in timed)
        is_whole = len(placement.stages) == 1
        assert placement.bottleneck_ms <= least_ms if is_whole else placement.bottleneck_ms == least_ms
    else:
        assert (corrected, placement) == (graph, first)


def test_plan_timed_wrong_profile_finds_the_best_cut() -> None:
    def time_stages(placement: Placement) -> list[float]:
        return [sum(2.0 if each < 5 else 1.0 for each in stage.nodes) for stage in placement.stages]

    _, placement = plan_timed(line(*[1.0] * 10), [machine(count=2)], 2, time_stages)
    assert [(stage.nodes, stage.ms) for stage in placement.stages] == [((0, 1, 2, 3), 8.0), ((4, 5, 6, 7, 8, 9), 7.0)]


def test_plan_timed_ends_at_even_stages() -> None:
    timed: list[list[float]] = [[5.1, 4.9], [4.0, 4.0]]
    _, placement = plan_timed(line(*[0.1] * 100), [machine(count=2)], 2, lambda _: timed.pop(0))
    assert [stage.ms for stage in placement.stages] == [5.1, 4.9]


def test_plan_timed_without_times_uses_the_profile() -> None:
    graph = line(1, 1, 1)
    assert plan_timed(graph, [machine(count=2)], 2, lambda _: None) == (graph, plan(graph, [machine(count=2)], 2))
