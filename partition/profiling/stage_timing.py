"""Times of a plan's stages, each alone on one thread."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from anabranch.partition.errors import StageFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.planning.placement import Placement
from anabranch.partition.profiling.inputs import NamedArrays, generate
from anabranch.partition.profiling.runtime import RuntimeSession, open_session
from anabranch.partition.stages.writer import StageFile, write_stages

#: Larger stages are not timed, since timing writes them.
MOST_BYTES = 1 << 30

#: Of all stages; slow stages exceed it.
_BUDGET_S = 1.5
_FEWEST_RUNS, _MOST_RUNS = 4, 100


def stage_times_ms(
    graph: Graph, placement: Placement, rows: int, batch: NamedArrays | None = None
) -> list[float] | None:
    """Measure the minimum thread time of a batch in each stage.

    Returns:
        Milliseconds by stage; None for weights over `MOST_BYTES`.

    Raises:
        StageFailed: A stage does not run.
    """
    if sum(stage.parameter_bytes for stage in placement.stages) > MOST_BYTES:
        return None
    failed = StageFailed("no stage ran")
    with tempfile.TemporaryDirectory(prefix="anabranch-stages-") as folder:
        stages = write_stages(graph, placement.downsets, Path(folder))
        for candidate in [batch] if batch is not None else generate(graph, rows):
            try:
                return list(_times_ms(stages, candidate))
            except StageFailed as error:
                failed = error
    raise failed


def _times_ms(stages: Sequence[StageFile], batch: NamedArrays) -> Iterator[float]:
    tensors = dict(batch)
    for number, stage in enumerate(stages):
        subject = f"stage {number}"
        session = open_session(stage.path, failure=StageFailed, subject=subject, threads=1)
        inputs = {name: tensors[name] for name in stage.inputs}
        tensors |= session.run(inputs, failure=StageFailed, subject=subject)
        yield min(_runs_ms(session, inputs, subject, _BUDGET_S / len(stages)))


def _runs_ms(session: RuntimeSession, inputs: NamedArrays, subject: str, budget_s: float) -> Iterator[float]:
    end_s, count = time.perf_counter() + budget_s, 0
    while count < _FEWEST_RUNS or (time.perf_counter() < end_s and count < _MOST_RUNS):
        start_s = time.thread_time()
        session.run(inputs, failure=StageFailed, subject=subject)
        yield (time.thread_time() - start_s) * 1000
        count += 1
