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
enough is found by halving (Alpa bounds the slowest stage in the same way). `partition.equal` and `partition.unequal`
say what is the best there is, and what a heuristic.
"""

from collections.abc import Sequence

from partition.costs import CostGraph, Cuts
from partition.equal import plan_equal
from partition.errors import NoPlan
from partition.placement import Machine, Placement, kind_of, stages_of
from partition.unequal import plan_unequal


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
