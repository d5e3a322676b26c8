"""Planner: cuts, replicas and machines with the lowest bottleneck (ADR 0012).

    bottleneck = max over stages of      ms / sum of its replicas' speeds
                 and over their links of bytes / bandwidth * the replica's share of the batches

Batches are shared by speed; transfers overlap computing. Dynamic programming finds the fewest machines for a
bound, as in PipeDream; bisection finds the bound, as in Alpa.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning.heterogeneous import plan_unequal
from anabranch.partition.planning.homogeneous import plan_equal
from anabranch.partition.planning.placement import Machine, Placement, kind_of, stages_of
from anabranch.partition.profiling.costs import CostGraph, Cuts

_MOST_TIMED = 4

#: Measures each stage's batch time, in ms at speed 1; None if not possible.
TimeStages = Callable[[Placement], Sequence[float] | None]


def plan_timed(
    graph: CostGraph, machines: Sequence[Machine], stages: int | None, time_stages: TimeStages
) -> tuple[CostGraph, Placement]:
    """Plans, times the stages and corrects the costs, until a plan repeats; returns the best.

    Raises:
        NoPlan: No plan exists.
    """
    placement = plan(graph, machines, stages)
    timed: dict[tuple[int, ...], tuple[CostGraph, Placement]] = {}
    while len(placement.stages) > 1 and tuple(placement.downsets) not in timed:
        ms = time_stages(placement) if len(timed) < _MOST_TIMED else None
        if ms is None:
            break
        graph = _corrected(graph, placement, ms)
        timed[tuple(placement.downsets)] = graph, placement.with_times(ms)
        placement = plan(graph, machines, stages)
    if len(placement.stages) == 1:
        timed[()] = graph, placement
    return min(timed.values(), key=lambda each: each[1].bottleneck_ms, default=(graph, placement))


def _corrected(graph: CostGraph, placement: Placement, ms: Sequence[float]) -> CostGraph:
    node_ms = list(graph.ms)
    for stage, stage_ms in zip(placement.stages, ms, strict=True):
        for node in stage.nodes:
            node_ms[node] = node_ms[node] * stage_ms / stage.ms if stage.ms else stage_ms / len(stage.nodes)
    return replace(graph, ms=tuple(node_ms))


def plan(graph: CostGraph, kinds: Sequence[Machine], stages: int | None = None) -> Placement:
    """Find the best plan.

    Args:
        graph: Costs.
        kinds: Machines.
        stages: Number of stages; None for any.

    Raises:
        NoPlan: No plan exists.
    """
    if not graph.ms:
        raise NoPlan("the model has no nodes to plan for: export it again")
    cuts = Cuts(graph)
    machines = [machine for machine in kinds for _ in range(machine.count)]
    if len({kind_of(machine) for machine in kinds}) == 1:
        choice, exact = plan_equal(cuts, machines, stages), cuts.complete
    else:
        choice, exact = plan_unequal(cuts, machines, stages)
    return Placement(tuple(stages_of(graph, cuts, choice)), exact)
