"""Planner: cuts, replicas and machines with the lowest bottleneck (ADR 0012).

    bottleneck = max over stages of      ms / sum of its replicas' speeds
                 and over their links of bytes / bandwidth * the replica's share of the batches

Batches are shared by speed; transfers overlap computing. Dynamic programming finds the fewest machines for a
bound, as in PipeDream; bisection finds the bound, as in Alpa.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning.cut_search import candidates, neighbours
from anabranch.partition.planning.cuts import Cuts
from anabranch.partition.planning.heterogeneous import plan_unequal
from anabranch.partition.planning.homogeneous import TIE, plan_equal
from anabranch.partition.planning.placement import Machine, Placement, even_ms, kind_of, stages_of
from anabranch.partition.profiling.costs import CostGraph

_MOST_TIMED = 4
_MOST_ROUNDS = 3
#: Relative distance from a lower bound at which the search ends: less than the noise of times.
_NEAR = 0.005
#: Families of cuts for unequal machines.
_MOST_UNEQUAL = 3
#: The same for timed stages.
_EVEN = 0.03

#: Measures each stage's batch time, in ms at speed 1; None if not possible.
TimeStages = Callable[[Placement], Sequence[float] | None]


def plan_timed(
    graph: CostGraph, machines: Sequence[Machine], stages: int | None, time_stages: TimeStages
) -> tuple[CostGraph, Placement]:
    """Plans, times the stages and corrects the costs, until a plan is even or repeats; returns the best.

    Raises:
        NoPlan: No plan exists.
    """
    placement = plan(graph, machines, stages)
    timed: dict[tuple[int, ...], tuple[CostGraph, Placement]] = {}
    while len(placement.stages) > 1 and tuple(placement.downsets) not in timed:
        ms = time_stages(placement) if len(timed) < _MOST_TIMED else None
        if ms is None:
            break
        graph, placement = _corrected(graph, placement, ms), placement.with_times(ms)
        timed[tuple(placement.downsets)] = graph, placement
        if placement.bottleneck_ms <= even_ms(sum(ms), machines) * (1 + _EVEN):
            break
        placement = plan(graph, machines, stages)
    if len(placement.stages) == 1:
        timed[()] = graph, placement
    return min(timed.values(), key=lambda each: each[1].bottleneck_ms, default=(graph, placement))


def _corrected(graph: CostGraph, placement: Placement, ms: Sequence[float]) -> CostGraph:
    """Scale the times of each stage's nodes to its own, except for copied nodes."""
    node_ms = list(graph.ms)
    for stage, stage_ms in zip(placement.stages, ms, strict=True):
        own = [node for node in stage.nodes if node not in graph.copied]
        own_ms = sum(graph.ms[node] for node in own)
        real_ms = max(stage_ms - sum(graph.ms[node] for node in graph.copies(own)), 0.0)
        for node in own:
            node_ms[node] = node_ms[node] * real_ms / own_ms if own_ms else real_ms / len(own)
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
    search = _Search(graph, kinds, stages)
    families = list(candidates(graph))
    if families[0].complete:
        return search.among(families[0])
    found = list(search.tried(families))
    if not found:  # perhaps cuts of several orders, and their neighbours
        seen = [downset for cuts in families for downset in cuts.downsets]
        seen += neighbours(graph, [cuts.downsets[len(cuts) // 2] for cuts in families])
        return search.among(Cuts(graph, seen))
    best = min(found, key=_rank)
    for _ in range(_MOST_ROUNDS):
        if search.is_near(best):
            break
        near = neighbours(graph, search.own(best))
        better = search.among(Cuts(graph, [*near, *(downset for each in found for downset in search.own(each))]))
        if _rank(better) >= _rank(best):
            break
        best = better
    return best


def _rank(placement: Placement) -> tuple[float, float, int]:
    """Sort key; lower is better."""
    return float(f"{placement.bottleneck_ms:.9g}"), float(f"{placement.latency_ms:.9g}"), placement.machine_count


class _Search:
    """Plans of a model among some of its cuts."""

    def __init__(self, graph: CostGraph, kinds: Sequence[Machine], stages: int | None) -> None:
        self._graph = graph
        self._machines = [machine for machine in kinds for _ in range(machine.count)]
        self._is_equal = len({kind_of(machine) for machine in kinds}) == 1
        self._stages = stages
        self._copied = sum(1 << node for node in graph.copied)

    def among(self, cuts: Cuts) -> Placement:
        """Find the best plan with some cuts; raise NoPlan."""
        if self._is_equal:
            choice, exact = plan_equal(cuts, self._machines, self._stages), cuts.complete
        else:
            choice, exact = plan_unequal(cuts, self._machines, self._stages)
        placement = Placement(tuple(stages_of(self._graph, cuts, choice)), exact)
        return replace(placement, exact=exact or placement.bottleneck_ms <= self.least_ms * (1 + 4 * TIE))

    def tried(self, families: Sequence[Cuts]) -> Iterator[Placement]:
        """Yield the best plan with each family of cuts; for unequal machines, which take long, a good one ends it."""
        for cuts in families if self._is_equal else families[:_MOST_UNEQUAL]:
            try:
                placement = self.among(cuts)
            except NoPlan:
                continue
            yield placement
            if not self._is_equal and self.is_near(placement):
                break

    def is_near(self, placement: Placement) -> bool:
        """Tell if no plan is better by more than the noise of times."""
        return placement.bottleneck_ms <= self.least_ms * (1 + _NEAR)

    def own(self, placement: Placement) -> list[int]:
        """List a plan's cuts, without copied nodes."""
        return [downset & ~self._copied for downset in placement.downsets]

    @cached_property
    def least_ms(self) -> float:
        """A bound of every bottleneck."""
        speeds = [machine.speed for machine in self._machines]
        least_ms = sum(self._graph.ms) / sum(speeds)
        if self._stages == len(speeds):  # no replicas
            least_ms = max(least_ms, max(self._graph.ms) / max(speeds))
        return least_ms
