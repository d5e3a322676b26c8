"""Legal cuts of a model (downsets: see `model_graph`), and costs between two of them."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from anabranch.partition.profiling.costs import CostGraph

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Cuts:
    """Legal cuts, smaller ones first, and costs between two of them.

    Attributes:
        members: Nodes before each cut, as flags; a copied node is there with the first node that needs it.
        ms: Time before each cut.
        crossing_bytes: Bytes across each cut.
        complete: No legal cut is missing.
    """

    def __init__(self, graph: CostGraph, downsets: Iterable[int], *, complete: bool = False) -> None:
        self._graph = graph
        self.complete = complete
        ends = {0, sum(1 << node for node in graph.own)}
        rows = sorted({*downsets, *ends}, key=lambda downset: (downset.bit_count(), downset))
        members = _members(rows, len(graph.ms))
        crossing, legal = _crossing(graph.placed, members)
        legal[[0, -1]] = True
        self.members = members[legal]
        self.downsets = [rows[index] for index in np.flatnonzero(legal)]
        self.crossing_bytes = crossing[legal]
        self.crossing_bytes[[0, -1]] = 0
        for node, users in graph.needers.items():
            self.members[:, node] = self.members[:, sorted(users)].any(axis=1)
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
        """Time of the stage between two cuts, with copied nodes; infinite without."""
        return np.where(self.follows, np.maximum(self.ms[None, :] - self.ms[:, None], 0) + self.copied_ms, np.inf)

    @cached_property
    def copied_ms(self) -> Floats:
        """Time of the copied nodes that earlier stages ran, too."""
        times = np.zeros((len(self), len(self)))
        for node, users in self._graph.needers.items():
            if not self._graph.ms[node]:
                continue
            count = self.members[:, sorted(users)].sum(axis=1)
            again = np.flatnonzero((count > 0) & (count < len(users)))
            times[again] += self._graph.ms[node] * (count[None, :] > count[again, None])
        return times

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
        for each in self._graph.placed.parameters:
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


def _members(downsets: list[int], nodes: int) -> Flags:
    width = (nodes + 7) // 8
    packed = np.frombuffer(b"".join(downset.to_bytes(width, "little") for downset in downsets), np.uint8)
    return np.unpackbits(packed.reshape(-1, width), axis=1, count=nodes, bitorder="little").astype(np.bool_)
