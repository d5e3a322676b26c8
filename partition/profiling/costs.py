"""Costs of a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property


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
        copied: Nodes that run in each stage that needs them, so that their tensors never cross; they make no output.
    """

    ms: tuple[float, ...]
    tensors: tuple[TensorCost, ...]
    parameters: tuple[ParameterCost, ...] = ()
    copied: frozenset[int] = frozenset()

    @cached_property
    def own(self) -> tuple[int, ...]:
        """Nodes that are not copied."""
        return tuple(node for node in range(len(self.ms)) if node not in self.copied)

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

    @cached_property
    def needers(self) -> dict[int, frozenset[int]]:
        """Nodes that need each copied node, also through other copied ones."""
        found: dict[int, frozenset[int]] = {}
        _, after = self.edges
        for node in sorted(self.copied, reverse=True):
            found[node] = frozenset(self._placed(after[node], found))
        return found

    @cached_property
    def placed(self) -> "CostGraph":
        """The graph in which the nodes that need a copied node read and hold what it does."""
        tensors = tuple(
            replace(each, users=tuple(sorted(self._placed(each.users, self.needers))))
            for each in self.tensors
            if each.producer not in self.copied
        )
        parameters = tuple(
            replace(each, users=tuple(sorted(self._placed(each.users, self.needers)))) for each in self.parameters
        )
        return CostGraph(self.ms, tensors, parameters) if self.copied else self

    def _placed(self, users: Iterable[int], needers: dict[int, frozenset[int]]) -> set[int]:
        return {each for user in users for each in (needers[user] if user in self.copied else (user,))}

    def copies(self, nodes: Iterable[int]) -> list[int]:
        """List the copied nodes that nodes of a stage need."""
        there = set(nodes)
        return [node for node, needers in self.needers.items() if not there.isdisjoint(needers)]

    def parameter_bytes(self, nodes: Sequence[int]) -> int:
        """Compute the size of a stage's weights."""
        there = set(nodes)
        return sum(each.size_bytes for each in self.placed.parameters if not there.isdisjoint(each.users))
