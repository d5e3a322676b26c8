"""Plans for machines of several kinds.

Every plan orders the machines so that the replicas of each stage are contiguous. For one order, dynamic programming
finds, per cut, the shortest prefix of machines that meets a bound. Stages may skip machines.

All orders are tried, up to `_MOST_ORDERS`; otherwise orders by speed, memory and link, improved by exchanges. Beyond
`_MOST_CUTS` cuts, only the narrowest cut of each stretch is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise

import numpy as np
import numpy.typing as npt

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning.cuts import Cuts, Floats
from anabranch.partition.planning.homogeneous import TIE, why_not
from anabranch.partition.planning.placement import Choice, Machine, kind_of

_MOST_ORDERS = 720
_MOST_CUTS = 250
_MOST_EXCHANGES = 200
#: Range of bounds, to divide by.
_SHORTEST_MS, _LONGEST_MS = 1e-200, 1e200


def plan_unequal(cuts: Cuts, machines: Sequence[Machine], stages: int | None) -> tuple[Choice, bool]:
    """Find a choice, and tell if it is proven to be optimal; raise NoPlan."""
    chosen = _thinned(cuts)
    costs = _Costs(
        chosen, cuts.stage_ms[np.ix_(chosen, chosen)], cuts.stage_bytes[np.ix_(chosen, chosen)],
        cuts.memory_bytes[np.ix_(chosen, chosen)], cuts.crossing_bytes[chosen],
    )  # fmt: skip
    orders = list(islice(_orders(machines), _MOST_ORDERS + 1))
    exact = len(orders) <= _MOST_ORDERS
    if not exact:
        orders = list(_sorted_orders(machines))
    best: _Found | None = None
    for order in orders:
        best = _better(costs, order, stages, best)
    if best is not None and not exact:
        best = _exchanged(costs, stages, best)
    if best is None:
        raise NoPlan(why_not(cuts, machines, stages))
    exact &= len(chosen) == len(cuts) and cuts.complete
    least_ms = cuts.ms[-1] / sum(machine.speed for machine in machines)
    choice = [chosen[end] for end in best.ends], best.replicas
    return choice, bool(exact or best.bottleneck_ms <= least_ms * (1 + 4 * TIE))


@dataclass(frozen=True)
class _Costs:
    """Costs of the stages between each two of the chosen cuts."""

    chosen: list[int]
    ms: Floats
    size_bytes: Floats
    memory_bytes: Floats
    crossing_bytes: Floats


@dataclass(frozen=True)
class _Found:
    """A plan for one order of the machines."""

    order: tuple[Machine, ...]
    ends: list[int]
    replicas: list[list[Machine]]
    bottleneck_ms: float
    latency_ms: float

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key; lower is better."""
        return float(f"{self.bottleneck_ms:.9g}"), float(f"{self.latency_ms:.9g}"), sum(map(len, self.replicas))


def _thinned(cuts: Cuts) -> list[int]:
    """Choose all cuts, or the narrowest of each stretch of the model of equal time."""
    if len(cuts) <= _MOST_CUTS:
        return list(range(len(cuts)))
    total = cuts.ms[-1] or 1.0
    stretches = np.minimum((cuts.ms / total * _MOST_CUTS).astype(int), _MOST_CUTS - 1)
    inner = range(1, len(cuts) - 1)
    narrowest: dict[int, int] = {}
    for cut in inner:
        known = narrowest.setdefault(int(stretches[cut]), cut)
        if cuts.crossing_bytes[cut] < cuts.crossing_bytes[known]:
            narrowest[int(stretches[cut])] = cut
    return [0, *sorted(narrowest.values()), len(cuts) - 1]


def _orders(machines: Sequence[Machine]) -> Iterator[tuple[Machine, ...]]:
    """Yield every order of the machines, with equal machines of a kind."""
    kinds: dict[Machine, list[Machine]] = {}
    for machine in machines:
        kinds.setdefault(kind_of(machine), []).append(machine)
    left = {kind: list(reversed(alike)) for kind, alike in kinds.items()}

    def extend(order: tuple[Machine, ...]) -> Iterator[tuple[Machine, ...]]:
        if len(order) == len(machines):
            yield order
        for alike in left.values():
            if alike:
                machine = alike.pop()
                yield from extend((*order, machine))
                alike.append(machine)

    return extend(())


def _sorted_orders(machines: Sequence[Machine]) -> Iterator[tuple[Machine, ...]]:
    for key in (
        lambda machine: machine.speed,
        lambda machine: np.inf if machine.memory_bytes is None else machine.memory_bytes,
        lambda machine: machine.bandwidth_bytes_per_s,
    ):
        yield tuple(sorted(machines, key=key))
        yield tuple(sorted(machines, key=key, reverse=True))


def _exchanged(costs: _Costs, stages: int | None, best: _Found) -> _Found:
    """Improve a plan by exchanging two machines at a time."""
    tried = 0
    while True:
        order = best.order
        for one, other in combinations(range(len(order)), 2):
            if kind_of(order[one]) == kind_of(order[other]):
                continue
            changed = list(order)
            changed[one], changed[other] = order[other], order[one]
            better = _better(costs, tuple(changed), stages, best)
            tried += 1
            if tried > _MOST_EXCHANGES:
                return best
            if better is not None and better.rank < best.rank:
                best = better
                break
        else:
            return best


def _better(costs: _Costs, order: tuple[Machine, ...], stages: int | None, best: _Found | None) -> _Found | None:
    """Return the better of an order's best plan and the known one."""
    line = _Line(costs, order, stages)
    found = line.within(np.inf if best is None else best.bottleneck_ms)
    if found is None or (best is not None and line.within(best.bottleneck_ms * (1 - 4 * TIE)) is None):
        return found if found is not None and best is not None and found.rank < best.rank else best
    low, high = costs.ms[0, -1] / sum(machine.speed for machine in order), found
    while low < high.bottleneck_ms * (1 - 4 * TIE):
        bound = (low + high.bottleneck_ms) / 2
        found = line.within(bound)
        if found is None:
            low = bound
        else:
            high = found
    return high


class _Line:
    """Plans for one order of the machines."""

    def __init__(self, costs: _Costs, order: tuple[Machine, ...], stages: int | None) -> None:
        self._costs = costs
        self._order = order
        self._stages = stages
        self._memory = np.array([np.inf if machine.memory_bytes is None else machine.memory_bytes for machine in order])
        self._drag = np.array([machine.speed * machine.ms_per_byte for machine in order])
        speeds = np.array([machine.speed for machine in order])
        self._levels = np.unique(self._memory)
        self._drags = np.unique(self._drag)
        #: Total speed of the first machines with at least a memory and at most a drag.
        self._speed_up_to = np.zeros((len(self._levels), len(self._drags), len(order) + 1))
        for level, memory in enumerate(self._levels):
            for place, drag in enumerate(self._drags):
                usable = (self._memory >= memory) & (self._drag <= drag)
                self._speed_up_to[level, place, 1:] = np.cumsum(speeds * usable)
        self._level = np.searchsorted(self._levels, costs.memory_bytes)

    def within(self, bound: float) -> _Found | None:
        """Find the plan within a bound on the fewest machines."""
        size = len(self._costs.chosen)
        best = np.full((size,), len(self._order) + 1)
        best[0] = 0
        parents = []
        for _ in range(self._stages or 1):
            parent = np.zeros(size, np.int64)
            following = np.full_like(best, len(self._order) + 1) if self._stages else best
            for end in range(1, size):
                runs = self._runs(best[:end], end, bound)
                parent[end] = runs.argmin()
                following[end] = runs[parent[end]]
            best = following
            if self._stages:
                best[0] = len(self._order) + 1
            parents.append((parent, best))
        if best[-1] > len(self._order):
            return None
        return self._found(parents)

    def _runs(self, starts: npt.NDArray[np.int64], end: int, bound: float) -> npt.NDArray[np.int64]:
        """Compute the shortest prefix of machines by the stage's start."""
        most = len(self._order)
        runs = np.full(len(starts), most + 1)
        ms, level = self._costs.ms[: len(starts), end], self._level[: len(starts), end]
        possible = (starts < most) & np.isfinite(ms) & (level < len(self._levels))
        for place, drag in enumerate(self._drags):
            needed = np.maximum(ms, drag * self._costs.size_bytes[: len(starts), end]) / min(
                max(bound, _SHORTEST_MS), _LONGEST_MS
            )
            for number in range(len(self._levels)):
                here = np.flatnonzero(possible & (level == number))
                if not len(here):
                    continue
                speed_up_to = self._speed_up_to[number, place]
                before = speed_up_to[starts[here]]
                # A stage without cost needs a machine, too.
                reach = np.maximum(needed[here] * (1 - TIE), TIE * self._speed_up_to[0, -1, -1]) + before
                runs[here] = np.minimum(runs[here], np.searchsorted(speed_up_to, reach))
        return np.where(runs > most, most + 1, runs)

    def _found(self, parents: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> _Found:
        ends = [len(self._costs.chosen) - 1]
        while len(ends) <= self._stages if self._stages else ends[-1]:
            ends.append(int(parents[-len(ends) if self._stages else 0][0][ends[-1]]))
        ends.reverse()
        at, replicas, bottleneck, latency = 0, [], 0.0, 0.0
        for number, (start, end) in enumerate(pairwise(ends)):
            best = parents[number if self._stages else 0][1]
            machines, period_ms = self._crew(at, int(best[end]), start, end)
            at = int(best[end])
            replicas.append(machines)
            bottleneck = max(bottleneck, period_ms)
            moved = self._costs.crossing_bytes[start] + self._costs.crossing_bytes[end]
            latency += max(
                self._costs.ms[start, end] / machine.speed + moved * machine.ms_per_byte + 2 * machine.latency_ms
                for machine in machines
            )
        return _Found(self._order, ends, replicas, bottleneck, float(latency))

    def _crew(self, first: int, last: int, start: int, end: int) -> tuple[list[Machine], float]:
        """Choose the machines of a run that a stage uses, and compute the time between two batches."""
        ms, size_bytes = self._costs.ms[start, end], self._costs.size_bytes[start, end]
        fits = self._memory[first:last] >= self._costs.memory_bytes[start, end]
        choices = []
        for drag in self._drags:
            usable = np.flatnonzero(fits & (self._drag[first:last] <= drag))
            if len(usable):
                machines = [self._order[first + place] for place in usable]
                speed = sum(machine.speed for machine in machines)
                widest = max(machine.speed * machine.ms_per_byte for machine in machines)
                choices.append((float(max(ms, widest * size_bytes) / speed), machines))
        period_ms, machines = min(choices, key=lambda choice: choice[0])
        return machines, period_ms
