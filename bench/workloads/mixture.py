"""Several workloads as one, each in three priorities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.tensors import Array
from bench.workloads.workload import Workload

#: Requests of ten with each priority.
SHARES = {1: 1, 5: 3, 9: 6}
_SEED = 1


@dataclass(frozen=True)
class Mixture:
    """A workload of requests of others.

    Attributes:
        workload: All of them, in a random order.
        parts: Index of each request's workload in `workloads`; `priorities` are likewise.
    """

    workload: Workload
    workloads: Sequence[Workload]
    parts: Array
    priorities: Array


def mixture_of(counts: Mapping[str, int], workloads: Sequence[Workload]) -> Mixture:
    """Mix workloads.

    Args:
        counts: Requests of each by name.
    """
    rng = np.random.default_rng(_SEED)
    in_turn = np.repeat([*SHARES], [*SHARES.values()])
    places = [(part, number) for part, each in enumerate(workloads) for number in range(counts[each.name])]
    order = [places[place] for place in rng.permutation(len(places))]
    # Each ten requests of a workload have all priorities.
    ranks = [rng.permuted(np.tile(in_turn, (-(-counts[each.name] // len(in_turn)), 1)), axis=1) for each in workloads]
    priorities = [int(ranks[part].ravel()[number]) for part, number in order]
    requests = [
        _with_priority(workloads[part].requests[number % len(workloads[part].requests)], priority)
        for (part, number), priority in zip(order, priorities, strict=True)
    ]
    answers = [workloads[part].answer(number) for part, number in order]
    tolerance = max(each.tolerance for each in workloads)
    workload = Workload("mixture", requests, answers, tolerance=tolerance)
    return Mixture(workload, workloads, np.array([part for part, _ in order]), np.array(priorities))


def _with_priority(request: Array, priority: int) -> Array:
    message = ModelInferRequest.FromString(request.tobytes())
    message.parameters["priority"].int64_param = priority
    return np.frombuffer(message.SerializeToString(), np.uint8)
