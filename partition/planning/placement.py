"""Machines, and what a plan for them comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import or_

import msgspec

from anabranch.partition.profiling.costs import CostGraph, Cuts


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines of one kind, each of which can hold one replica of one stage.

    Attributes:
        speed: 1.0 computes as fast as the machine that the model was profiled on.
        memory_bytes: For a stage's weights and what it receives and sends; leave room for ONNX Runtime itself.
        count: How many there are.
        bandwidth_bytes_per_s: Of its link, each way.
        latency_ms: Of its link, each way.
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    count: int = 1
    bandwidth_bytes_per_s: float = 1.25e9
    latency_ms: float = 0.1

    @property
    def ms_per_byte(self) -> float:
        """What a byte takes on its link."""
        return 1000 / self.bandwidth_bytes_per_s


def kind_of(node: Machine) -> Machine:
    """What machines have in common that differ in nothing but their names."""
    return msgspec.structs.replace(node, name="", count=1)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        nodes: Of the graph.
        replicas: The machines' kinds, one for each replica.
        ms: What a batch takes at speed 1.
        output_bytes: What crosses the cut after it; 0 for the last.
        compute_ms: How often its replicas together give a batch; likewise `receive_ms` and `send_ms` for their links.
        latency_ms: From the first byte on its link to the last byte that has left it, on its slowest replica.
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
        """How often it gives a batch."""
        return max(self.compute_ms, self.receive_ms, self.send_ms)

    @property
    def held_up_by(self) -> str:
        """What takes so long."""
        parts = {"computing": self.compute_ms, "receiving": self.receive_ms, "sending": self.send_ms}
        return max(parts, key=lambda part: parts[part])


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan.

    Attributes:
        exact: Whether no other plan has a lower bottleneck.
    """

    stages: tuple[PlannedStage, ...]
    exact: bool

    @property
    def bottleneck_ms(self) -> float:
        """How often the pipeline gives a batch."""
        return max(stage.period_ms for stage in self.stages)

    @property
    def latency_ms(self) -> float:
        """What one batch takes from the first stage to the last, when none is in its way."""
        return sum(stage.latency_ms for stage in self.stages)

    @property
    def downsets(self) -> list[int]:
        """What has run at the end of each stage but the last, as sets of the graph's nodes: see `model_graph`."""
        parts = (sum(1 << node for node in stage.nodes) for stage in self.stages[:-1])
        return list(accumulate(parts, or_))

    @property
    def node_count(self) -> int:
        """How many machines it takes."""
        return sum(len(stage.replicas) for stage in self.stages)

    def with_times(self, ms: Sequence[float]) -> "Placement":
        """The same plan, where a batch takes so long in each of its stages at speed 1."""
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


#: The downsets at which a plan cuts, none and all of the nodes included, and the machines of each stage.
Choice = tuple[list[int], list[list[Machine]]]


def stages_of(graph: CostGraph, cuts: Cuts, choice: Choice) -> list[PlannedStage]:
    """What a choice comes to."""
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
