"""Models cut in two, and the time of each stage on one thread."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.planning.cut_search import candidates
from anabranch.partition.planning.placement import Machine
from anabranch.partition.planning.planner import plan_timed
from anabranch.partition.profiling.costs import CostGraph
from anabranch.partition.profiling.profile import costs_of, profile, with_copies
from anabranch.partition.profiling.stage_timing import stage_times_ms
from anabranch.partition.stages.manifest import write_placement
from anabranch.partition.stages.writer import write_stages
from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from bench.systems.onnx_session import open_session
from bench.workloads.workload import Workload

STAGES = 2
PLAN = f"stages-{STAGES}/plan.json"
_BEST = 5
#: Trying a cut writes and loads both stages.
_MOST_CUTS = 250


@dataclass(frozen=True)
class Chosen:
    """The planner's cut.

    Attributes:
        cut: Nodes of the first stage, a bit each.
        predicted_ms: Time of the slower stage.
        folder: Folder of the stages' models.
    """

    cut: int
    predicted_ms: float
    folder: Path


def cut_in_two(model: Path) -> Chosen:
    """Profile a model, cut it, and write the stages and `PLAN` beside it."""
    graph = load_graph(model)
    known = profile(graph, 1, again=True)
    graph = with_copies(graph, known)
    time_stages = partial(stage_times_ms, graph, rows=known.rows)
    _, placement = plan_timed(costs_of(graph, known), [Machine(name="machine", count=STAGES)], STAGES, time_stages)
    folder = model.parent / Path(PLAN).parent
    write_placement(graph, placement, folder, rows=known.rows)
    return Chosen(placement.downsets[0], placement.bottleneck_ms, folder)


class StageSessions:
    """Sessions of the stages of one cut.

    Args:
        folder: Folder of `stage-0.onnx` and so on.
        batch: Inputs of the whole model.
    """

    def __init__(self, folder: Path, batch: Mapping[str, Array]) -> None:
        self._stages: list[tuple[Any, list[str], dict[str, Array]]] = []
        living = dict(batch)
        for number in range(STAGES):
            session = open_session(folder / f"stage-{number}.onnx")
            inputs = {tensor.name: living[tensor.name] for tensor in session.get_inputs()}
            names = [tensor.name for tensor in session.get_outputs()]
            living.update(zip(names, session.run(names, inputs), strict=True))
            self._stages.append((session, names, inputs))

    def run_ms(self, number: int) -> float:
        """Time of one run of a stage."""
        session, names, inputs = self._stages[number]
        start_s = perf_counter()
        session.run(names, inputs)
        return (perf_counter() - start_s) * 1000

    def bottleneck_ms(self, runs: int) -> float:
        """Return the slower stage's median, the stages in turn."""
        times = [[self.run_ms(number) for number in range(STAGES)] for _ in range(runs)]
        return max(median(of_run[number] for of_run in times) for number in range(STAGES))


def best_single_cut(model: Path, chosen: Chosen, batch: Mapping[str, Array], rounds: int) -> tuple[float, float, int]:
    """Measure up to 250 single cuts, and the best ones again in turn with the planner's.

    Half of the rounds finds the best cut, the other half times it, to avoid a bias.

    Returns:
        Bottlenecks of the best cut and the planner's in ms, and the number of cuts.
    """
    graph = load_graph(model)
    known = profile(graph, 1)
    graph = with_copies(graph, known)
    with tempfile.TemporaryDirectory(prefix="bench-cuts-") as folder:
        found = [
            (_written(graph, cut, Path(folder), batch).bottleneck_ms(2), cut) for cut in _cuts(costs_of(graph, known))
        ]
        best = [cut for _, cut in sorted(found)[:_BEST]]
        chains: list[StageSessions] = []
        for cut in (chosen.cut, *best):
            place = Path(folder) / f"{len(chains)}"
            place.mkdir()
            chains.append(_written(graph, cut, place, batch))
        times: list[list[float]] = [[] for _ in chains]
        for _ in range(2 * rounds):
            for chain, of_chain in zip(chains, times, strict=True):
                # Brings its weights into the caches, as in a task.
                chain.bottleneck_ms(1)
                of_chain.append(chain.bottleneck_ms(1))
    best_times = min(times[1:], key=lambda of_chain: median(of_chain[:rounds]))
    return median(best_times[rounds:]), median(times[0][rounds:]), len(found)


def _cuts(costs: CostGraph) -> Iterator[int]:
    """Nodes of the first stage, for the most even cuts that the planner knows."""
    slower_ms: dict[int, float] = {}
    for cuts in candidates(costs):
        for number, members in enumerate(cuts.members[1:-1], 1):
            cut = sum(1 << int(node) for node in np.flatnonzero(members))
            slower_ms[cut] = max(cuts.stage_ms[0, number], cuts.stage_ms[number, -1])
    yield from sorted(slower_ms, key=lambda cut: slower_ms[cut])[:_MOST_CUTS]


def _written(graph: Graph, cut: int, folder: Path, batch: Mapping[str, Array]) -> StageSessions:
    write_stages(graph, [cut], folder)
    return StageSessions(folder, batch)


def first_batch(workload: Workload) -> dict[str, Array]:
    """Return the inputs of a workload's first request."""
    return {tensor.name: tensor.to_array() for tensor in codec.decode_request(workload.message(0)).inputs}


def generated(model: Path, shape: Sequence[int]) -> dict[str, Array]:
    """One random batch for a model with one input of floats."""
    [name] = load_graph(model).inputs
    return {name: np.random.default_rng(1).standard_normal(shape, np.float32)}
