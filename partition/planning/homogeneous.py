"""Plans for machines of one kind.

The bottleneck is optimal. Ties go to the lowest latency (unless cuts ** 2 * machines * stages exceeds `_MOST_TIES`),
then to the fewest machines.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from anabranch.partition.errors import NoPlan
from anabranch.partition.planning.cuts import Cuts, Floats
from anabranch.partition.planning.placement import Choice, Machine

#: Relative difference below which bottlenecks are equal.
TIE = 1e-9

_MOST_TIES = 1_000_000_000
_NEVER = 1 << 24

Counts = npt.NDArray[np.int32]


def plan_equal(cuts: Cuts, machines: Sequence[Machine], stages: int | None) -> Choice:
    """Find the best choice; raise NoPlan."""
    machine, most = machines[0], len(machines)
    cost = np.maximum(cuts.stage_ms / machine.speed, cuts.stage_bytes * machine.ms_per_byte)
    if machine.memory_bytes is not None:
        cost = np.where(cuts.memory_bytes <= machine.memory_bytes, cost, np.inf)
    cost = np.ascontiguousarray(cost.T)  # by end, then start: faster
    ends = _fewest(_needs(cost, np.inf, most), most, stages)
    if ends is None:
        raise NoPlan(why_not(cuts, machines, stages))
    low, high = cuts.ms[-1] / machine.speed / most, _bottleneck(cost, ends, np.inf)
    while low < high * (1 - 4 * TIE):
        bound = (low + high) / 2
        found = _fewest(_needs(cost, bound, most), most, stages)
        if found is None:
            low = bound
        else:
            ends, high = found, _bottleneck(cost, found, bound)
    needs = _needs(cost, high, most)
    if len(cuts) ** 2 * most * (stages or 1) <= _MOST_TIES:
        price = 2 * (cuts.crossing_bytes * machine.ms_per_byte + machine.latency_ms)
        price[-1] = 0
        ends = _cheapest(needs, price[:, None] + cuts.copied_ms.T / machine.speed, most, stages)
    used = 0
    replicas = []
    for start, end in pairwise(ends):
        count = int(needs[end, start])
        replicas.append(list(machines[used : used + count]))
        used += count
    return ends, replicas


def _needs(cost: Floats, bound: float, most: int) -> Counts:
    """Count the machines of each stage within a bound, by its end and start; `_NEVER` for more than `most`."""
    if bound == 0:
        return np.where(cost == 0, 1, _NEVER).astype(np.int32)
    needs = np.maximum(np.ceil(cost / bound - TIE), 1) if np.isfinite(bound) else np.where(np.isfinite(cost), 1, np.inf)
    return np.where(needs <= most, needs, _NEVER).astype(np.int32)


def _bottleneck(cost: Floats, ends: Sequence[int], bound: float) -> float:
    costs = np.array([cost[end, start] for start, end in pairwise(ends)])
    counts = np.maximum(np.ceil(costs / bound - TIE), 1) if 0 < bound < np.inf else np.ones(len(costs))
    return float((costs / counts).max())


def _fewest(needs: Counts, most: int, stages: int | None) -> list[int] | None:
    """Find the ends of the stages that need the fewest machines; None if these are too many."""
    size = len(needs)
    parents = []
    best = np.full(size, _NEVER, np.int32)
    best[0] = 0
    if stages is None:
        parent = np.zeros(size, np.int32)
        for end in range(1, size):
            totals = best[:end] + needs[end, :end]
            parent[end] = totals.argmin()
            best[end] = min(totals[parent[end]], _NEVER)
        parents = [parent]
    for _ in range(stages or 0):
        totals = needs + best
        parents.append(totals.argmin(axis=1))
        best = np.minimum(totals[np.arange(size), parents[-1]], _NEVER)
    if best[-1] > most:
        return None
    ends = [size - 1]
    while len(ends) <= stages if stages else ends[-1]:
        ends.append(int(parents[-len(ends) if stages else 0][ends[-1]]))
    return ends[::-1]


def _cheapest(needs: Counts, price: Floats, most: int, stages: int | None) -> list[int]:
    """Find the ends of the stages with the lowest price, then the fewest machines.

    Args:
        needs: Machines by end and start.
        price: Of a stage, by end and start.
        most: Number of machines.
        stages: Number of stages.
    """
    size, layers = len(needs), stages or 0
    # The lowest price, and the cut before, by number of stages, end of the last stage and number of machines.
    lowest = np.full((layers + 1, size, most + 1), np.inf)
    lowest[0, 0, 0] = 0
    parents = np.zeros((layers + 1, size, most + 1), np.int32)
    # For any number of stages, one layer follows itself.
    before, after = (lowest[:-1], slice(1, None)) if stages else (lowest, slice(None))
    for end in range(1, size):
        row = needs[end, :end]
        for count in np.unique(row[row <= most]):
            starts = np.flatnonzero(row == count)
            totals = before[:, starts, : most + 1 - count] + price[end, starts][:, None]
            chosen = totals.argmin(axis=1)
            found = np.take_along_axis(totals, chosen[:, None], axis=1)[:, 0]
            known = lowest[after, end, count:]
            better = found < known
            known[better] = found[better]
            parents[after, end, count:][better] = starts[chosen[better]]
    last = lowest[-1, -1]
    used = int(np.flatnonzero(last <= last.min() * (1 + TIE))[0])
    ends = [size - 1]
    while len(ends) <= layers if stages else ends[-1]:
        start = int(parents[-len(ends) if stages else 0, ends[-1], used])
        used -= int(needs[ends[-1], start])
        ends.append(start)
    return ends[::-1]


def why_not(cuts: Cuts, machines: Sequence[Machine], stages: int | None) -> str:
    """Explain in one line why there is no plan."""
    longest = _longest(cuts.follows)
    if stages is not None and stages > longest:
        return f"{stages} stages are more than the model can be cut into: {longest} at most"
    if stages is not None and stages > len(machines):
        return f"{stages} stages need a machine each, and there are {len(machines)}: ask for fewer, or add machines"
    largest = max(np.inf if machine.memory_bytes is None else machine.memory_bytes for machine in machines)
    fits = cuts.follows & (cuts.memory_bytes <= largest)
    reached = np.zeros(len(cuts), np.bool_)
    reached[0] = True
    for end in range(1, len(cuts)):
        reached[end] = (reached[:end] & fits[:end, end]).any()
    if not reached[-1]:
        smallest = smallest_piece(cuts)
        return (
            f"a stage of {smallest:,.0f} bytes cannot be cut further, and the largest machine holds {largest:,.0f}: "
            "add memory"
        )
    fewest = _fewest(np.where(fits.T, 1, _NEVER).astype(np.int32), _NEVER - 1, None)
    if fewest is not None and len(fewest) - 1 > len(machines):
        return (
            f"the model needs {len(fewest) - 1} machines of the largest memory, and there are {len(machines)}: "
            "add machines, or memory"
        )
    wanted = "" if stages is None else f" in {stages} stages"
    return f"the model does not fit the memory of the machines{wanted}: add machines, or memory"


def _longest(follows: npt.NDArray[np.bool_]) -> int:
    length = np.zeros(len(follows), np.int64)
    for end in range(1, len(follows)):
        length[end] = length[:end][follows[:end, end]].max() + 1
    return int(length[-1])


def smallest_piece(cuts: Cuts) -> float:
    """Compute the least memory of the largest stage."""
    least = np.full(len(cuts), np.inf)
    least[0] = 0
    for end in range(1, len(cuts)):
        memory = np.where(cuts.follows[:end, end], cuts.memory_bytes[:end, end], np.inf)
        least[end] = np.maximum(least[:end], memory).min()
    return float(least[-1])
