"""Cuts to choose from: all of a model, or a good part of too many.

Part of them: the cuts between *clusters*, which light nodes form with the nodes that read them, and the cuts along some
orders of the nodes. The planner adds the neighbours of the best plan's cuts.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import or_

from anabranch.partition.graph.model_graph import indices
from anabranch.partition.planning.cuts import Cuts
from anabranch.partition.profiling.costs import CostGraph

#: More cuts are not listed.
_MOST_CUTS = 2_500
#: Cuts along one order.
_MOST_ALONG = 500
#: Largest time of a light node, as a share of the model's; the smallest whose clusters have few enough cuts is used.
_LIGHT = (1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 4e-2)
_MOST_COARSE = 1_000
#: Neighbours of all cuts of a plan, and nodes between two of them.
_MOST_NEIGHBOURS, _MOST_MOVED = 400, 64

Neighbours = Mapping[int, Sequence[int]]


def candidates(graph: CostGraph) -> Iterator[Cuts]:
    """Yield all cuts; of too many those between clusters, and those along each order."""
    every = _all(graph)
    if every is not None:
        yield every
        return
    clusters = _between_clusters(graph)
    if clusters is not None:
        yield clusters
    yield from _along_orders(graph)


def _all(graph: CostGraph) -> Cuts | None:
    before, after = graph.placed.edges
    found = _downsets({node: before[node] for node in graph.own}, {node: after[node] for node in graph.own}, _MOST_CUTS)
    return None if found is None else Cuts(graph, found, complete=True)


def _between_clusters(graph: CostGraph) -> Cuts | None:
    total_ms = sum(graph.ms)
    for light in _LIGHT:
        cluster_of = _clusters(graph, light * total_ms)
        masks = dict.fromkeys(cluster_of.values(), 0)
        before: dict[int, set[int]] = {cluster: set() for cluster in masks}
        after: dict[int, set[int]] = {cluster: set() for cluster in masks}
        for node, cluster in cluster_of.items():
            masks[cluster] |= 1 << node
            for user in graph.placed.edges[1][node]:
                if cluster_of[user] != cluster:
                    after[cluster].add(cluster_of[user])
                    before[cluster_of[user]].add(cluster)
        found = _downsets(
            {cluster: sorted(nodes) for cluster, nodes in before.items()},
            {cluster: sorted(nodes) for cluster, nodes in after.items()},
            _MOST_COARSE,
        )
        if found is not None:
            whole = (sum(mask for cluster, mask in masks.items() if downset >> cluster & 1) for downset in found)
            return Cuts(graph, whole)
    return None


def _along_orders(graph: CostGraph) -> Iterator[Cuts]:
    for order in orders(graph):
        cuts = Cuts(graph, accumulate((1 << node for node in order), or_))
        if len(cuts) > _MOST_ALONG:
            cuts = Cuts(graph, _narrowest(cuts, _MOST_ALONG))
        yield cuts


def _narrowest(cuts: Cuts, most: int) -> list[int]:
    """Choose the narrowest cut of each stretch of the model of equal time."""
    total = cuts.ms[-1] or 1.0
    chosen: dict[int, int] = {}
    for cut in range(1, len(cuts) - 1):
        stretch = min(int(cuts.ms[cut] / total * most), most - 1)
        known = chosen.setdefault(stretch, cut)
        if cuts.crossing_bytes[cut] < cuts.crossing_bytes[known]:
            chosen[stretch] = cut
    return [cuts.downsets[cut] for cut in chosen.values()]


def orders(graph: CostGraph) -> Iterator[list[int]]:
    """Yield topological orders of the nodes that are not copied."""
    before, after = graph.placed.edges
    own = graph.own
    yield list(own)
    yield list(_narrow_order(graph, own))
    yield _depth_first(own, before, after)
    early, late = dict.fromkeys(own, 0), dict.fromkeys(own, 0)
    for node in own:
        early[node] = max((early[each] + 1 for each in before[node]), default=0)
    yield sorted(own, key=lambda node: (early[node], node))
    for node in reversed(own):
        late[node] = min((late[each] - 1 for each in after[node]), default=0)
    yield sorted(own, key=lambda node: (late[node], node))


def neighbours(graph: CostGraph, downsets: Sequence[int]) -> list[int]:
    """List the nearest downsets by time: those with a node more and what it needs, or one less and what needs it."""
    before, after = graph.placed.edges
    own = graph.own
    needs, needed = {}, {}
    for node in own:
        needs[node] = 1 << node
        for each in before[node]:
            needs[node] |= needs[each]
    for node in reversed(own):
        needed[node] = 1 << node
        for each in after[node]:
            needed[node] |= needed[each]
    most = _MOST_NEIGHBOURS // max(len(downsets), 1)
    found: set[int] = set()
    for downset in downsets:
        near, waiting = {downset}, deque([downset])
        while waiting and len(near) < most:
            here = waiting.popleft()
            moved: dict[int, float] = {}
            for node in own:
                other = here & ~needed[node] if here >> node & 1 else here | needs[node]
                if (other ^ here).bit_count() <= _MOST_MOVED and other not in near:
                    moved[other] = sum(graph.ms[each] for each in indices(other ^ here))
            nearest = sorted(moved, key=lambda other: (moved[other], other))[: most - len(near)]
            near.update(nearest)
            waiting += nearest
        found |= near
    return sorted(found)


def _downsets(before: Neighbours, after: Neighbours, most: int) -> list[int] | None:
    """List all downsets, smaller ones first; None for more than `most`."""
    needs = {node: sum(1 << each for each in nodes) for node, nodes in before.items()}
    level = {0: [node for node, nodes in before.items() if not nodes]}
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


def _clusters(graph: CostGraph, light_ms: float) -> dict[int, int]:
    """Join light nodes to the first cluster that reads them; return each node's cluster, its last node.

    Clusters in the order of their last nodes are in topological order, so they form no cycle.
    """
    _, after = graph.placed.edges
    cluster_of: dict[int, int] = {}
    for node in reversed(graph.own):
        is_light = graph.ms[node] <= light_ms and after[node]
        cluster_of[node] = min(cluster_of[each] for each in after[node]) if is_light else node
    return cluster_of


def _depth_first(own: Sequence[int], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[int]:
    """Order nodes so that each comes after all that it needs, and as late as possible."""
    order: dict[int, None] = {}
    waiting = [node for node in reversed(own) if not after[node]]
    while waiting:
        missing = [each for each in before[waiting[-1]] if each not in order]
        if missing:
            waiting.append(missing[0])
        else:
            order.setdefault(waiting.pop())
    return list(order)


def _narrow_order(graph: CostGraph, own: Iterable[int]) -> Iterator[int]:
    """Yield nodes in a greedy order that keeps few bytes alive."""
    before, after = graph.placed.edges
    tensors = graph.placed.tensors
    made: list[int] = [0] * len(graph.ms)
    reads: list[list[int]] = [[] for _ in graph.ms]
    for number, tensor in enumerate(tensors):
        if tensor.producer is not None:
            made[tensor.producer] += tensor.size_bytes
        for user in set(tensor.users):
            reads[user].append(number)
    left = [len(set(tensor.users)) for tensor in tensors]
    missing = [len(nodes) for nodes in before]
    ready = {node for node in own if not missing[node]}
    while ready:
        node = min(
            ready,
            key=lambda node: (
                made[node] - sum(tensors[number].size_bytes for number in reads[node] if left[number] == 1),
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
