"""A pipeline of stages on many nodes, batch by batch: what the planner's formula says, plus chance and a feed.

    feed --link--> [ receive | compute | send ] x replicas --link--> [ ... ] --link--> drain

Each direction of a link and each node's processor does one thing at a time, first come, first served. A batch goes to
the replica that will be free first. One feed sends all that comes in, and one drain takes all that goes out.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anabranch.partition.planning.placement import Machine, PlannedStage

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feed:
    """What stands at both ends of the pipeline.

    Attributes:
        input_bytes: Of a batch; likewise `output_bytes`.
        bandwidth_bytes_per_s: Of its link, each way.
    """

    input_bytes: int
    output_bytes: int
    bandwidth_bytes_per_s: float


def simulate(stages: Sequence[PlannedStage], feed: Feed, *, batches: int, variation: float, seed: int) -> float:
    """How many batches a second come out, when there is always one to feed.

    Args:
        stages: Of a plan.
        feed: Where batches come from and go to.
        batches: How many go through; the first half of them fills the pipeline, and does not count.
        variation: Standard deviation of a batch's computing time, as a part of its mean.
        seed: Of the chance.
    """
    rng = np.random.default_rng(seed)
    sent_ms = feed.input_bytes * 1000 / feed.bandwidth_bytes_per_s
    arrived = sent_ms * np.arange(1, batches + 1)
    received_bytes = feed.input_bytes
    for number, stage in enumerate(stages):
        sent_bytes = stage.output_bytes if number < len(stages) - 1 else feed.output_bytes
        arrived = np.sort(_through(stage, arrived, received_bytes, sent_bytes, _chance(rng, variation, batches)))
        received_bytes = sent_bytes
    drained_ms = feed.output_bytes * 1000 / feed.bandwidth_bytes_per_s
    left = np.zeros(batches)
    at = 0.0
    for batch, ms in enumerate(arrived):
        at = max(at, ms) + drained_ms
        left[batch] = at
    half = batches // 2
    return float((batches - half) * 1000 / (left[-1] - left[half - 1]))


def _chance(rng: np.random.Generator, variation: float, count: int) -> Times:
    """Factors with a mean of 1, never negative."""
    if not variation:
        return np.ones(count)
    shape = 1 / variation**2
    return rng.gamma(shape, 1 / shape, count)


class _Replica:
    """One node, and when each part of it is free."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.receives_ms = self.computes_ms = self.sends_ms = 0.0


def _through(stage: PlannedStage, arrived: Times, received_bytes: float, sent_bytes: float, chance: Times) -> Times:
    """When each batch is at the next stage; batches arrive in order."""
    replicas = [_Replica(machine) for machine in stage.replicas]
    # By when a replica would be done with another batch.
    line = [(stage.ms / replica.machine.speed, number) for number, replica in enumerate(replicas)]
    heapq.heapify(line)
    left = np.zeros(len(arrived))
    for batch, arrival_ms in enumerate(arrived):
        _, number = line[0]
        replica = replicas[number]
        machine = replica.machine
        replica.receives_ms = max(replica.receives_ms, arrival_ms) + received_bytes * machine.ms_per_byte
        start_ms = max(replica.computes_ms, replica.receives_ms + machine.latency_ms)
        replica.computes_ms = start_ms + stage.ms / machine.speed * chance[batch]
        replica.sends_ms = max(replica.sends_ms, replica.computes_ms) + sent_bytes * machine.ms_per_byte
        left[batch] = replica.sends_ms + machine.latency_ms
        heapq.heapreplace(line, (replica.computes_ms + stage.ms / machine.speed, number))
    return left
