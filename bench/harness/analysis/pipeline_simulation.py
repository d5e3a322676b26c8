"""Simulation of a pipeline of stages on many machines, batch by batch.

    feed --link--> [ receive | compute | send ] x replicas --link--> [ ... ] --link--> drain

Each direction of a link and each processor serves one batch at a time. A batch goes to the first free replica.
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
    """Feed and drain of the pipeline.

    Attributes:
        input_bytes: Size of a batch; likewise `output_bytes`.
        bandwidth_bytes_per_s: Bandwidth of its link, each way.
    """

    input_bytes: int
    output_bytes: int
    bandwidth_bytes_per_s: float


def simulate(stages: Sequence[PlannedStage], feed: Feed, *, batches: int, variation: float, seed: int) -> float:
    """Batches a second of a pipeline that always has input.

    Args:
        batches: Simulated batches; the first half does not count.
        variation: Standard deviation of computing times, as a share of the mean.
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
    """A machine, and the times at which its parts are free."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.receives_ms = self.computes_ms = self.sends_ms = 0.0


def _through(stage: PlannedStage, arrived: Times, received_bytes: float, sent_bytes: float, chance: Times) -> Times:
    """Arrival times at the next stage, in order."""
    replicas = [_Replica(machine) for machine in stage.replicas]
    # Time at which each replica would finish another batch.
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
