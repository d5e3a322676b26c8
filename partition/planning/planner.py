"""Chooses cuts, replicas and nodes so that the pipeline's slowest part is as quick as it can be.

    bottleneck = max over stages of      ms / sum of its replicas' speeds
                 and over their links of bytes / bandwidth * the replica's share of the batches

What is assumed: stages work at the same time on different batches. A stage's replicas share the batches in proportion
to their speeds, and each is on a node of its own. What crosses a cut leaves by the sender's link and comes in by the
receiver's; a link sends and receives at the same time, while its node computes, so that each of its two directions is
a stage of the pipeline of its own. A link's latency makes answers later, not fewer. What comes into the first stage and
goes out of the last is there in every plan, and not counted.

For a given bottleneck it is plain how many nodes each possible stage takes, so the fewest nodes for everything up to a
cut follow from those for the cuts before it (PipeDream's dynamic program); the least bottleneck for which there are
enough is found by halving (Alpa bounds the slowest stage in the same way). `homogeneous` and `heterogeneous`
say what is the best there is, and what a heuristic.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning.heterogeneous import plan_unequal
from anabranch.partition.planning.homogeneous import plan_equal
from anabranch.partition.planning.placement import Machine, Placement, kind_of, stages_of
from anabranch.partition.profiling.costs import CostGraph, Cuts

#: How many plans are timed; two suffice nearly always.
_MOST_TIMED = 4

#: What a batch takes in each stage of a plan, ms, at speed 1; None if it cannot be told.
TimeStages = Callable[[Placement], Sequence[float] | None]


def plan_timed(
    graph: CostGraph, nodes: Sequence[Machine], stages: int | None, time_stages: TimeStages
) -> tuple[CostGraph, Placement]:
    """The best plan by what its stages really take, and the costs by which it is the best.

    A profile of the whole model tells the time of kernels that several nodes became, and not what changes at a cut. So
    the stages of a plan are timed, the costs of their nodes are corrected in proportion, and the next plan is made by
    these; until a plan comes again. Of those that were timed, the one with the lowest bottleneck is taken, unless the
    whole model in one stage has become better.

    Raises:
        NoPlan: There is none; the message says why.
    """
    placement = plan(graph, nodes, stages)
    timed: dict[tuple[int, ...], tuple[CostGraph, Placement]] = {}
    while len(placement.stages) > 1 and tuple(placement.downsets) not in timed:
        ms = time_stages(placement) if len(timed) < _MOST_TIMED else None
        if ms is None:
            break
        graph = _corrected(graph, placement, ms)
        timed[tuple(placement.downsets)] = graph, placement.with_times(ms)
        placement = plan(graph, nodes, stages)
    if len(placement.stages) == 1:
        timed[()] = graph, placement
    return min(timed.values(), key=lambda each: each[1].bottleneck_ms, default=(graph, placement))


def _corrected(graph: CostGraph, placement: Placement, ms: Sequence[float]) -> CostGraph:
    node_ms = list(graph.ms)
    for stage, stage_ms in zip(placement.stages, ms, strict=True):
        for node in stage.nodes:
            node_ms[node] = node_ms[node] * stage_ms / stage.ms if stage.ms else stage_ms / len(stage.nodes)
    return replace(graph, ms=tuple(node_ms))


def plan(graph: CostGraph, nodes: Sequence[Machine], stages: int | None = None) -> Placement:
    """The best way to cut a model for these machines.

    Args:
        stages: How many there shall be; None for as many as are best.

    Raises:
        NoPlan: There is none; the message says why.
    """
    if not graph.ms:
        raise NoPlan("the model has no nodes to plan for")
    cuts = Cuts(graph)
    machines = [node for node in nodes for _ in range(node.count)]
    if len({kind_of(node) for node in nodes}) == 1:
        choice, exact = plan_equal(cuts, machines, stages), cuts.complete
    else:
        choice, exact = plan_unequal(cuts, machines, stages)
    return Placement(tuple(stages_of(graph, cuts, choice)), exact)
