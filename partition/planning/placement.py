"""Machines, and the times of a plan for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import or_

import msgspec

from anabranch.partition.profiling.costs import CostGraph, Cuts


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines of one kind, each of which can hold one replica of one stage.

    Attributes:
        speed: Relative to the profiling machine.
        memory_bytes: Room for weights, inputs and outputs; None for any.
        count: Number of these machines.
        bandwidth_bytes_per_s: Bandwidth of the link, each way.
        latency_ms: Latency of the link, each way.
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    count: int = 1
    bandwidth_bytes_per_s: float = 1.25e9
    latency_ms: float = 0.1

    @property
    def ms_per_byte(self) -> float:
        """Time of a byte on its link."""
        return 1000 / self.bandwidth_bytes_per_s


def kind_of(machine: Machine) -> Machine:
    """Returns a machine without name and count, to compare."""
    return msgspec.structs.replace(machine, name="", count=1)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        replicas: The machine of each replica.
        ms: Time of a batch at speed 1.
        output_bytes: Bytes that cross the cut after it.
        compute_ms: Time between two batches of all replicas; likewise `receive_ms`, `send_ms`.
        latency_ms: Time of one batch on the slowest replica, with transfers.
    """

    nodes: tuple[int, ...]
    replicas: tuple[Machine, ...]
    ms: float
    parameter_bytes: int
    output_bytes: int
    compute_ms: float
    receive_ms: float
    send_ms: float
    latency_ms: float

    @property
    def period_ms(self) -> float:
        """Time between two batches."""
        return max(self.compute_ms, self.receive_ms, self.send_ms)

    @property
    def held_up_by(self) -> str:
        """The slowest of its three parts."""
        parts = {"computing": self.compute_ms, "receiving": self.receive_ms, "sending": self.send_ms}
        return max(parts, key=lambda part: parts[part])


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan: stages, in order.

    Attributes:
        exact: No other plan has a lower bottleneck.
    """

    stages: tuple[PlannedStage, ...]
    exact: bool

    @property
    def bottleneck_ms(self) -> float:
        """Time between two batches of the pipeline."""
        return max(stage.period_ms for stage in self.stages)

    @property
    def latency_ms(self) -> float:
        """Time of one batch in an idle pipeline."""
        return sum(stage.latency_ms for stage in self.stages)

    @property
    def downsets(self) -> list[int]:
        """The cuts after each stage but the last: see `model_graph`."""
        parts = (sum(1 << node for node in stage.nodes) for stage in self.stages[:-1])
        return list(accumulate(parts, or_))

    @property
    def machine_count(self) -> int:
        """Number of machines in use."""
        return sum(len(stage.replicas) for stage in self.stages)

    def with_times(self, ms: Sequence[float]) -> "Placement":
        """Returns the same plan with other times of its stages, at speed 1."""
        sent = [stage.output_bytes for stage in self.stages[:-1]]
        ends, last = list(zip([0, *sent], [*sent, 0], strict=True)), len(sent)
        timed = [
            _stage(
                stage.nodes,
                stage.replicas,
                ms[number],
                stage.parameter_bytes,
                ends[number],
                (number > 0) + (number < last),
            )
            for number, stage in enumerate(self.stages)
        ]
        return replace(self, stages=tuple(timed))


#: The numbers of a plan's cuts, first and last included, and the machines of each stage.
Choice = tuple[list[int], list[list[Machine]]]


def stages_of(graph: CostGraph, cuts: Cuts, choice: Choice) -> list[PlannedStage]:
    """Computes the stages of a choice."""
    ends, replicas = choice
    found = []
    for (start, end), machines in zip(pairwise(ends), replicas, strict=True):
        ms = float(cuts.ms[end] - cuts.ms[start])
        crossing = int(cuts.crossing_bytes[start]), int(cuts.crossing_bytes[end])
        nodes = cuts.stage(start, end)
        links = (start > 0) + (end < len(cuts) - 1)
        found.append(_stage(nodes, machines, ms, graph.parameter_bytes(nodes), crossing, links))
    return found


def _stage(
    nodes: tuple[int, ...],
    machines: Sequence[Machine],
    ms: float,
    parameter_bytes: int,
    crossing_bytes: tuple[int, int],
    links: int,
) -> PlannedStage:
    received, sent = crossing_bytes
    speed = sum(machine.speed for machine in machines)
    widest = max(machine.speed * machine.ms_per_byte for machine in machines) / speed
    return PlannedStage(
        nodes=nodes,
        replicas=tuple(machines),
        ms=ms,
        parameter_bytes=parameter_bytes,
        output_bytes=sent,
        compute_ms=ms / speed,
        receive_ms=received * widest,
        send_ms=sent * widest,
        latency_ms=max(
            ms / each.speed + (received + sent) * each.ms_per_byte + links * each.latency_ms for each in machines
        ),
    )
