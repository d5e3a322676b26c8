"""Machines, and times of a plan."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import or_

import msgspec

from anabranch.partition.planning.cuts import Cuts
from anabranch.partition.profiling.costs import CostGraph


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines of one kind, for one replica each.

    Attributes:
        speed: Relative to the profiling machine.
        memory_bytes: For weights, inputs and outputs; None for any.
        count: Number of these machines.
        bandwidth_bytes_per_s, latency_ms: Of its link, each way.
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


def even_ms(ms: float, kinds: Iterable[Machine]) -> float:
    """Return the least bottleneck: time shared by speed."""
    return ms / sum(kind.speed * kind.count for kind in kinds)


def kind_of(machine: Machine) -> Machine:
    """Return a machine without name and count."""
    return msgspec.structs.replace(machine, name="", count=1)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """Planned stage.

    Attributes:
        ms: Time of a batch at speed 1.
        output_bytes: Across the cut after it.
        compute_ms, receive_ms, send_ms: Time between batches of all replicas.
        latency_ms: Of a batch on the slowest replica, with transfers.
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
        """Its slowest part."""
        parts = {"computing": self.compute_ms, "receiving": self.receive_ms, "sending": self.send_ms}
        return max(parts, key=lambda part: parts[part])


@dataclass(frozen=True, slots=True)
class Placement:
    """Plan: stages, in order.

    Attributes:
        exact: The bottleneck is proven to be optimal.
    """

    stages: tuple[PlannedStage, ...]
    exact: bool

    @property
    def bottleneck_ms(self) -> float:
        """Time between batches of the pipeline."""
        return max(stage.period_ms for stage in self.stages)

    @property
    def latency_ms(self) -> float:
        """Time of a batch in an idle pipeline."""
        return sum(stage.latency_ms for stage in self.stages)

    @property
    def downsets(self) -> list[int]:
        """Cuts between stages; see `model_graph`."""
        parts = (sum(1 << node for node in stage.nodes) for stage in self.stages[:-1])
        return list(accumulate(parts, or_))

    @property
    def machine_count(self) -> int:
        """Number of machines in use."""
        return sum(len(stage.replicas) for stage in self.stages)

    def with_times(self, ms: Sequence[float]) -> "Placement":
        """Return the plan with other stage times, at speed 1."""
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


#: Numbers of a plan's cuts with both ends, and machines of each stage.
Choice = tuple[list[int], list[list[Machine]]]


def stages_of(graph: CostGraph, cuts: Cuts, choice: Choice) -> list[PlannedStage]:
    """Compute the stages of a choice."""
    ends, replicas = choice
    found = []
    for (start, end), machines in zip(pairwise(ends), replicas, strict=True):
        ms = float(cuts.stage_ms[start, end])
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
