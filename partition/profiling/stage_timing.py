"""Times the stages of a plan, each alone on one thread, as the task that will hold it runs it."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from anabranch.partition.errors import StageFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.planning.placement import Placement
from anabranch.partition.profiling.inputs import Batch, generate
from anabranch.partition.profiling.runtime import RuntimeSession, open_session
from anabranch.partition.stages.writer import StageFile, write_stages
from anabranch.schemas.tensors import Array

#: Weights of more than this would have to be written once more for each plan that is timed: then the profile has to do.
MOST_BYTES = 1 << 30

#: For all of a plan's stages; slow ones run `_FEWEST_RUNS` times all the same.
_BUDGET_S = 1.5
_FEWEST_RUNS, _MOST_RUNS = 4, 100


def stage_times_ms(graph: Graph, placement: Placement, rows: int, batch: Batch | None = None) -> list[float] | None:
    """What a batch takes in each stage of a plan: the least of several runs, of its thread alone.

    Args:
        graph: The model.
        placement: The plan.
        rows: Of the batch.
        batch: What to run; None for a random one on which the stages run.

    Returns:
        Milliseconds by stage; None of a model with weights of more than `MOST_BYTES`.

    Raises:
        StageFailed: A stage does not run on what the stages before it gave.
    """
    if sum(stage.parameter_bytes for stage in placement.stages) > MOST_BYTES:
        return None
    failed = StageFailed("no stage ran")
    with tempfile.TemporaryDirectory(prefix="anabranch-stages-") as folder:
        stages = write_stages(graph, placement.downsets, Path(folder))
        for each in [batch] if batch is not None else generate(graph, rows):
            try:
                return list(_times_ms(stages, each))
            except StageFailed as error:
                failed = error
    raise failed


def _times_ms(stages: Sequence[StageFile], batch: Mapping[str, Array]) -> Iterator[float]:
    living = dict(batch)
    for number, stage in enumerate(stages):
        who = f"stage {number}"
        session = open_session(stage.path, failure=StageFailed, who=who, threads=1)
        taken = {name: living[name] for name in stage.inputs}
        living |= session.run(taken, failure=StageFailed, who=who)
        yield min(_runs_ms(session, taken, who, _BUDGET_S / len(stages)))


def _runs_ms(session: RuntimeSession, taken: Batch, who: str, budget_s: float) -> Iterator[float]:
    end_s, count = time.perf_counter() + budget_s, 0
    while count < _FEWEST_RUNS or (time.perf_counter() < end_s and count < _MOST_RUNS):
        start_s = time.thread_time()
        session.run(taken, failure=StageFailed, who=who)
        yield (time.thread_time() - start_s) * 1000
        count += 1
