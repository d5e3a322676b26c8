"""Shows that a chain of stages equals the model it was cut from, by running both.

    x --> [ the whole model ] ------------------------------------> y
    x --> [ stage 0 ] --> [ stage 1 ] --> [ stage 2 ] ------------> y      the same, for every batch

ONNX Runtime optimizes both as far as it can. Of the whole model it may join operators that a cut keeps apart, and then
it rounds elsewhere: floats are compared within a tolerance, and the proof says how far they were apart. All else is
compared exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anabranch.partition.errors import StageFailed, UnequalOutput, WholeModelFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.profiling.inputs import Batch, generate, has_rows
from anabranch.partition.profiling.runtime import RuntimeSession, open_session
from anabranch.partition.stages.writer import StageFile
from anabranch.schemas.tensors import Array

#: How many rows the batches have, where the model takes any number.
ROWS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two floats may be apart: `absolute`, and `relative` times the float itself or a usual one of its output.

    What is near zero is often the difference of large numbers: their noise is in it. So the root mean square of the
    output counts where the float is smaller.
    """

    relative: float
    absolute: float


#: By datatype; about the noise of rounding elsewhere in a deep model.
TOLERANCES: Mapping[str, Tolerance] = {
    "float16": Tolerance(1e-2, 1e-3),
    "float32": Tolerance(1e-3, 1e-5),
    "float64": Tolerance(1e-9, 1e-12),
}


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared.

    Attributes:
        batches: How many batches ran through both.
        largest_difference: Between a float of the whole model and the chain's; 0.0 where all are the same.
        output: The output that has it.
    """

    batches: int
    largest_difference: float
    output: str | None


def prove(
    graph: Graph,
    stages: Sequence[StageFile],
    batches: Sequence[Batch] = (),
    *,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> Proof:
    """Runs model and chain on the same batches and compares every output.

    Args:
        graph: The model.
        stages: Its stages, in order.
        batches: What to run; where there are none, random ones of several sizes.
        tolerances: How far floats may be apart, by numpy's name of their dtype.

    Raises:
        WholeModelFailed: The model itself does not run on the batches, or gives no finite values on any of those that
            were generated.
        StageFailed: A stage does not load or run.
        UnequalOutput: An output differs.
    """
    whole = open_session(graph.path, failure=WholeModelFailed, who="the whole model")
    inputs = [dict(batch) for batch in batches] or _generated(graph, whole)
    expected = [_run_whole(whole, batch) for batch in inputs]
    # One session at a time: a large model fits in memory once.
    del whole
    living = inputs
    for number, stage in enumerate(stages):
        living = _run_stage(number, stage, living, _needed_after(graph, stages[number + 1 :]))
    proof = Proof(len(inputs), 0.0, None)
    for batch, chained, outputs in zip(inputs, living, expected, strict=True):
        for name in graph.outputs:
            who = f"output {name!r} of {_shapes(batch)}"
            difference = _compare(who, outputs[name], chained[name], tolerances)
            if difference > proof.largest_difference:
                proof = Proof(len(inputs), difference, name)
    return proof


def _generated(graph: Graph, whole: RuntimeSession) -> list[dict[str, Array]]:
    found = []
    for rows in ROWS if has_rows(graph) else ROWS[:1]:
        failed = ""
        for batch in generate(graph, rows):
            try:
                outputs = _run_whole(whole, batch)
            except WholeModelFailed as error:
                failed = str(error)
                continue
            if silent := [name for name, array in outputs.items() if not _tells(array)]:
                failed = f"all of output {silent[0]!r} is NaN or infinite, which any stages could give"
                continue
            found.append(batch)
            break
        else:
            raise WholeModelFailed(
                f"no random inputs suit the model, so give real ones (`anabranch plan --inputs FILE.npz`): {failed}"
            )
    return found


def _tells(output: Array) -> bool:
    """Whether there is a value by which the stages can be told from others."""
    return output.dtype.kind != "f" or not output.size or bool(np.isfinite(output).any())


def _run_whole(whole: RuntimeSession, batch: Batch) -> dict[str, Array]:
    return whole.run(batch, failure=WholeModelFailed, who=f"the whole model on {_shapes(batch)}")


def _run_stage(number: int, stage: StageFile, living: Sequence[Batch], needed: set[str]) -> list[dict[str, Array]]:
    """What lives on after a stage: what it gives, and what travels past it."""
    who = f"stage {number}"
    session = open_session(stage.path, failure=StageFailed, who=who)
    after = []
    for tensors in living:
        taken = {name: tensors[name] for name in stage.inputs}
        made = session.run(taken, failure=StageFailed, who=f"{who} on {_shapes(taken)}")
        after.append({name: array for name, array in {**tensors, **made}.items() if name in needed})
    return after


def _needed_after(graph: Graph, later: Sequence[StageFile]) -> set[str]:
    return {*graph.outputs, *(name for stage in later for name in stage.inputs)}


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items()) or "no input"


def _compare(who: str, whole: Array, chained: Array, tolerances: Mapping[str, Tolerance]) -> float:
    """The largest difference of floats."""
    if whole.dtype != chained.dtype or whole.shape != chained.shape:
        raise UnequalOutput(
            f"{who} is {whole.dtype} {list(whole.shape)} in the whole model, and {chained.dtype} "
            f"{list(chained.shape)} in stages"
        )
    if whole.dtype.kind != "f":
        different = int(np.count_nonzero(whole != chained))
        if different:
            raise UnequalOutput(f"{who} differs in {different} of {whole.size} elements")
        return 0.0
    same = (whole == chained) | (np.isnan(whole) & np.isnan(chained))
    if same.all():
        return 0.0
    tolerance = tolerances[whole.dtype.name]
    wide: Any = np.float64
    exact = whole.astype(wide)
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(exact - chained.astype(wide)))
    finite = np.isfinite(exact)
    usual = float(np.sqrt(np.mean(np.square(exact[finite])))) if finite.any() else 0.0
    allowed = tolerance.absolute + tolerance.relative * np.maximum(np.abs(exact), usual)
    if not (apart <= np.where(finite, allowed, 0.0)).all():
        raise UnequalOutput(
            f"{who} differs by up to {apart.max():.3g}, over the tolerance of {tolerance.absolute:g} + "
            f"{tolerance.relative:g} * the larger of |value| and {usual:.3g}"
        )
    return float(apart.max())
