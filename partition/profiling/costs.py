"""Costs of a model, and its cuts (downsets: see `model_graph`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import or_

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Beyond it, only downsets along a few orders of the nodes are used.
MOST_DOWNSETS = 2_500


@dataclass(frozen=True, slots=True)
class TensorCost:
    """Tensor that can cross a cut.

    Attributes:
        producer: Its node; None for inputs.
        users: Nodes that read it.
        is_output: Crosses all later cuts.
        may_cross: The wire can carry it.
    """

    size_bytes: int
    producer: int | None
    users: tuple[int, ...]
    is_output: bool = False
    may_cross: bool = True


@dataclass(frozen=True, slots=True)
class ParameterCost:
    """Weights, held by each stage with a user."""

    size_bytes: int
    users: tuple[int, ...]


@dataclass(frozen=True)
class CostGraph:
    """Costs of a model, nodes in topological order.

    Attributes:
        ms: Time of each node at speed 1.
    """

    ms: tuple[float, ...]
    tensors: tuple[TensorCost, ...]
    parameters: tuple[ParameterCost, ...] = ()

    @cached_property
    def edges(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """Predecessors and successors of each node."""
        before: list[set[int]] = [set() for _ in self.ms]
        after: list[set[int]] = [set() for _ in self.ms]
        for tensor in self.tensors:
            for user in tensor.users if tensor.producer is not None else ():
                before[user].add(tensor.producer)  # type: ignore[arg-type]
                after[tensor.producer].add(user)  # type: ignore[index]
        return tuple(tuple(sorted(each)) for each in before), tuple(tuple(sorted(each)) for each in after)

    def parameter_bytes(self, nodes: Sequence[int]) -> int:
        """Compute the size of a stage's weights."""
        there = set(nodes)
        return sum(each.size_bytes for each in self.parameters if not there.isdisjoint(each.users))


class Cuts:
    """Legal cuts, smaller ones first, and costs between two of them.

    Attributes:
        members: Nodes before each cut, as flags.
        ms: Time before each cut.
        crossing_bytes: Bytes across each cut.
        complete: No legal cut is missing.
    """

    def __init__(self, graph: CostGraph) -> None:
        self._graph = graph
        found = _downsets(graph, MOST_DOWNSETS)
        self.complete = found is not None
        rows = found if found is not None else _along_orders(graph)
        members = _members(rows, len(graph.ms))
        crossing, legal = _crossing(graph, members)
        legal[[0, -1]] = True
        self.members = members[legal]
        self.crossing_bytes = crossing[legal]
        self.crossing_bytes[[0, -1]] = 0
        self.ms: Floats = self.members.astype(np.float64) @ np.array(graph.ms, np.float64)

    def __len__(self) -> int:
        """Count cuts, with both ends."""
        return len(self.members)

    def stage(self, start: int, end: int) -> tuple[int, ...]:
        """List the nodes between two cuts."""
        return tuple(np.flatnonzero(self.members[end] & ~self.members[start]).tolist())

    @cached_property
    def follows(self) -> Flags:
        """Tell if the second cut contains the first."""
        members = self.members.astype(np.float32)
        sizes = members.sum(axis=1)
        follows: Flags = (members @ members.T == sizes[:, None]) & (sizes[:, None] < sizes[None, :])
        return follows

    @cached_property
    def stage_ms(self) -> Floats:
        """Time of the stage between two cuts; infinite without."""
        return np.where(self.follows, np.maximum(self.ms[None, :] - self.ms[:, None], 0), np.inf)

    @cached_property
    def stage_bytes(self) -> Floats:
        """Bytes at the wider end of a stage."""
        return np.maximum(self.crossing_bytes[:, None], self.crossing_bytes[None, :])

    @cached_property
    def memory_bytes(self) -> Floats:
        """Memory of a stage: weights, inputs and outputs."""
        held = np.add.outer(self.crossing_bytes, self.crossing_bytes)
        alone = np.zeros(len(self._graph.ms))
        shared: dict[tuple[int, ...], int] = {}
        for each in self._graph.parameters:
            users = tuple(sorted(set(each.users)))
            if len(users) == 1:
                alone[users[0]] += each.size_bytes
            elif users:
                shared[users] = shared.get(users, 0) + each.size_bytes
        before = self.members @ alone
        held += before[None, :] - before[:, None]
        for users, size_bytes in shared.items():
            count = self.members[:, users].sum(axis=1)
            held += size_bytes * (count[None, :] > count[:, None])
        return held


def _crossing(graph: CostGraph, members: Flags) -> tuple[Floats, Flags]:
    """Compute the bytes that cross each cut, and if they may."""
    crossing, legal = np.zeros(len(members)), np.ones(len(members), np.bool_)
    for tensor in graph.tensors:
        made = members[:, tensor.producer] if tensor.producer is not None else np.ones(len(members), np.bool_)
        crosses = made & (~members[:, tensor.users].all(axis=1) | tensor.is_output)
        crossing += tensor.size_bytes * crosses
        legal &= tensor.may_cross | ~crosses
    return crossing, legal


def _downsets(graph: CostGraph, most: int) -> list[int] | None:
    """List all downsets, smaller ones first; None for more than `most`."""
    before, after = graph.edges
    needs = [sum(1 << node for node in nodes) for nodes in before]
    level = {0: [node for node, nodes in enumerate(before) if not nodes]}
    found: list[int] = []
    while level:
        found += level
        if len(found) > most:
            return None
        following: dict[int, list[int]] = {}
        for downset, ready in level.items():
            for node in ready:
                larger = downset | 1 << node
                if larger not in following:
                    following[larger] = [each for each in ready if each != node]
                    following[larger] += [each for each in after[node] if needs[each] & ~larger == 0]
        level = following
    return found


def _members(downsets: Sequence[int], nodes: int) -> Flags:
    width = (nodes + 7) // 8
    packed = np.frombuffer(b"".join(downset.to_bytes(width, "little") for downset in downsets), np.uint8)
    return np.unpackbits(packed.reshape(-1, width), axis=1, count=nodes, bitorder="little").astype(np.bool_)


def _along_orders(graph: CostGraph) -> list[int]:
    """List downsets along a narrow order, and that of the nodes if they fit."""
    found: set[int] = set()
    for order in (_narrow_order(graph), range(len(graph.ms))):
        downsets = set(accumulate((1 << node for node in order), or_, initial=0))
        if len(found | downsets) <= MOST_DOWNSETS or not found:
            found |= downsets
    return sorted(found, key=lambda downset: (downset.bit_count(), downset))


def _narrow_order(graph: CostGraph) -> Iterator[int]:
    """Yield nodes in a greedy order that keeps few bytes alive."""
    before, after = graph.edges
    made: list[int] = [0] * len(graph.ms)
    reads: list[list[int]] = [[] for _ in graph.ms]
    for number, tensor in enumerate(graph.tensors):
        if tensor.producer is not None:
            made[tensor.producer] += tensor.size_bytes
        for user in set(tensor.users):
            reads[user].append(number)
    left = [len(set(tensor.users)) for tensor in graph.tensors]
    missing = [len(nodes) for nodes in before]
    ready = {node for node, count in enumerate(missing) if not count}
    while ready:
        node = min(
            ready,
            key=lambda node: (
                made[node] - sum(graph.tensors[number].size_bytes for number in reads[node] if left[number] == 1),
                node,
            ),
        )
        ready.remove(node)
        yield node
        for number in reads[node]:
            left[number] -= 1
        for following in after[node]:
            missing[following] -= 1
            if not missing[following]:
                ready.add(following)
