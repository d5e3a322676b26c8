"""Simulated scaling from one machine to 1,024, from measured profiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anabranch.demo.features import model_path as magika_path
from anabranch.partition.errors import NoPlan
from anabranch.partition.graph.model_graph import load_graph
from anabranch.partition.planning.cut_search import candidates
from anabranch.partition.planning.homogeneous import smallest_piece
from anabranch.partition.planning.placement import Machine, Placement, PlannedStage
from anabranch.partition.planning.planner import plan
from anabranch.partition.profiling.costs import CostGraph
from anabranch.partition.profiling.profile import Profile, costs_of, profile, with_copies
from bench.harness.analysis.measures import Spread, Tally
from bench.harness.analysis.pipeline_simulation import Feed, simulate
from bench.harness.environment import BenchEnvironment
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Row, Run, ScenarioResult
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.workloads.models import LIGHT, RESNET
from bench.workloads.repositories import Repositories

NODES = tuple(2**power for power in range(11))
_BANDWIDTH_BYTES_PER_S = 1.25e9
_LATENCY_MS = 0.1
_VARIATION = 0.1
_PIPELINE, _REPLICAS, _SMALL = "a stage a node", "as planned", "as planned, a third of the weights a node"
#: Scaling stops where a doubling brings less than this.
_WORTH_IT = 1.5
#: No model here gains from more stages.
_MOST_STAGES = 32
_NEARLY_ALL = 0.9


class ScalingRun(Run, frozen=True, kw_only=True):
    """A simulated placement.

    Attributes:
        used: Machines in use.
        rate_per_s: Simulated batches of one row a second.
        predicted_per_s: Rate without variation.
        held_up_by: The bottleneck.
    """

    nodes: int
    used: int
    stages: int
    rate_per_s: float
    predicted_per_s: float
    held_up_by: str


@dataclass(frozen=True)
class ProfiledModel:
    """A model and its profile, taken at first use."""

    name: str
    path: Path
    has_weights: bool = True

    @cached_property
    def profile(self) -> Profile:
        """Cost of a batch of one row."""
        return profile(load_graph(self.path), 1)

    @cached_property
    def costs(self) -> CostGraph:
        """Input of the planner."""
        return costs_of(with_copies(load_graph(self.path), self.profile), self.profile)

    @cached_property
    def feed(self) -> Feed:
        """Sizes of inputs and outputs."""
        sizes, graph = self.profile.tensor_bytes, load_graph(self.path)
        into, out_of = (sum(sizes[name] for name in names) for names in (graph.inputs, graph.outputs))
        return Feed(into, out_of, _BANDWIDTH_BYTES_PER_S)


class Scaling:
    """Three placements of three models."""

    name = "scaling"
    method = (
        "Simulation, batch by batch, from profiles measured on this machine (one thread, batches of one row): equal "
        "nodes as fast as one core here, links of 10 Gbit/s and 0.1 ms, computing times that vary by 10 % (gamma), and "
        "one broker that feeds and drains everything over one such link. `a stage a node`: one replica of each of as "
        "many stages as there are nodes, 32 at most. `as planned`: the planner's choice of cuts and replicas. `a third "
        "of the weights a node`: the same, where no node can hold more than that, or than the largest part that cannot "
        "be cut. Stops at: the number of nodes from which on doubling them brings less than 1.5 times as much; then "
        "what is slowest."
    )

    def __init__(self, repository: Path) -> None:
        self._models = (
            ProfiledModel("resnet50", repository / RESNET / "1" / "model.onnx"),
            ProfiledModel("magika", magika_path()),
            ProfiledModel("densenet121", LIGHT / "light_densenet121.onnx", has_weights=False),
        )

    def steps(self) -> Iterator[Turn]:
        """Every model, placement and number of machines."""
        for model in self._models:
            for system in (_PIPELINE, _REPLICAS, _SMALL):
                if system == _SMALL and not model.has_weights:
                    continue
                for nodes in NODES:
                    yield Turn(f"scaling, {model.name}: {nodes} nodes", partial(self._run, model, system, nodes), 2)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Largest useful number of machines for each placement."""
        ours = [run for run in runs if isinstance(run, ScalingRun)]
        rows = []
        for model in self._models:
            for system in (_PIPELINE, _REPLICAS, _SMALL):
                taken = [run for run in ours if (run.workload, run.system) == (model.name, system)]
                if taken:
                    rows.append(_row(taken))
        return Conclusion(rows, [], [], {})

    def _run(self, model: ProfiledModel, system: str, nodes: int, _: BenchEnvironment) -> list[ScalingRun]:
        placement = _placement(model.costs, system, nodes)
        if placement is None:
            return []
        batches = max(4_000, 10 * nodes)
        rate_per_s = simulate(placement.stages, model.feed, batches=batches, variation=_VARIATION, seed=nodes)
        fed_ms = max(model.feed.input_bytes, model.feed.output_bytes) * 1000 / _BANDWIDTH_BYTES_PER_S
        slowest = max(placement.stages, key=lambda stage: stage.period_ms)
        return [
            ScalingRun(
                system=system,
                workload=model.name,
                repeat=0,
                tally=Tally(requests=batches, answered=batches, missing=0, wrong=0, repeated=0, deviation=0.0),
                core_s_per_1000={},
                other_cores=0.0,
                nodes=nodes,
                used=placement.machine_count,
                stages=len(placement.stages),
                rate_per_s=rate_per_s,
                predicted_per_s=1000 / max(placement.bottleneck_ms, fed_ms),
                held_up_by="feeding" if fed_ms > placement.bottleneck_ms else _reason(model.costs, slowest),
            )
        ]


def _placement(costs: CostGraph, system: str, nodes: int) -> Placement | None:
    """Return the plan; None where the model needs more nodes."""
    machine = Machine(name="machine", count=nodes, bandwidth_bytes_per_s=_BANDWIDTH_BYTES_PER_S, latency_ms=_LATENCY_MS)
    if system == _REPLICAS:
        return plan(costs, [machine])
    if system == _SMALL:
        try:
            return plan(costs, [msgspec.structs.replace(machine, memory_bytes=_third(costs))])
        except NoPlan:
            return None
    best: Placement | None = None
    for stages in (2**power for power in range(nodes.bit_length()) if 2**power <= _MOST_STAGES):
        found = _pipeline(costs, msgspec.structs.replace(machine, count=stages))
        if found is None:
            break
        best = found if best is None or found.bottleneck_ms < best.bottleneck_ms else best
    return best


@cache
def _pipeline(costs: CostGraph, machines: Machine) -> Placement | None:
    """Return a stage for each machine; None where the model cannot be cut so often."""
    try:
        return plan(costs, [machines], machines.count)
    except NoPlan:
        return None


def _third(costs: CostGraph) -> int:
    """Memory of a node that holds a third of the model, or what cannot be cut further."""
    least = min(smallest_piece(cuts) for cuts in candidates(costs))
    return int(max(sum(each.size_bytes for each in costs.parameters) / 3, least))


def _reason(costs: CostGraph, slowest: PlannedStage) -> str:
    """Return the bottleneck of a pipeline."""
    largest_ms = max(costs.ms[node] for node in slowest.nodes)
    one = slowest.held_up_by == "computing" and len(slowest.replicas) == 1 and largest_ms > _NEARLY_ALL * slowest.ms
    return "computing one operator" if one else slowest.held_up_by


def _row(taken: Sequence[ScalingRun]) -> Row:
    by_nodes = {run.nodes: run for run in taken}
    rates = {run.nodes: run.rate_per_s for run in taken}
    first = min(rates)
    stops = next(
        (nodes for nodes, more in pairwise(sorted(rates)) if rates[more] < _WORTH_IT * rates[nodes]), max(rates)
    )
    figures = {
        "rate_per_s": max(rates.values()),
        "stops_at_nodes": float(stops),
        "speed_up_at_stop": rates[stops] / rates[first],
        "speed_up_at_1024": rates[max(rates)] / rates[first],
        "simulated_to_predicted": min(run.rate_per_s / run.predicted_per_s for run in taken),
    }
    return Row(
        system=f"{taken[0].system}: then {by_nodes[max(rates)].held_up_by}",
        workload=taken[0].workload,
        metrics={name: Spread.of([value]) for name, value in figures.items()},
        core_s_per_1000={},
        not_answered_right=0,
        other_cores=0.0,
    )


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, ScalingRun)]
    workloads = list(dict.fromkeys(run.workload for run in runs))
    figure = Figure(figsize=(4 * len(workloads), 4), layout="constrained")
    panels = figure.subplots(1, len(workloads), squeeze=False)[0]
    for axes, workload in zip(panels, workloads, strict=True):
        first = min((run for run in runs if run.workload == workload), key=lambda run: run.nodes)
        ends = np.array([1, max(run.nodes for run in runs)])
        axes.plot(ends, ends * first.rate_per_s / first.nodes, color=plots.FAINT, linewidth=1.5, label="linear")
        for number, system in enumerate(dict.fromkeys(run.system for run in runs)):
            taken = [run for run in runs if (run.workload, run.system) == (workload, system)]
            nodes, rates = [run.nodes for run in taken], [run.rate_per_s for run in taken]
            axes.plot(nodes, rates, "o-", color=plots.PARTS[1:][number], markersize=4, label=system)
            if taken:
                reason = (nodes[-1], rates[-1])
                place = (0, 5 if number != 1 else -12)
                axes.annotate(taken[-1].held_up_by, reason, place, textcoords="offset points", ha="right", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_title(workload, loc="left", fontsize=11)
        axes.set_xlabel("nodes")
        plots.clean(axes)
    panels[0].set_ylabel("rows/s, simulated")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure


@scenario(Scaling.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:  # noqa: ARG001 - like the others
    """Make the scenario."""
    return Scaling(models.large), models.large
