"""Proof that stages equal their model: both run on the same batches.

    x --> [ whole model ] --------------------------> y
    x --> [ stage 0 ] --> [ stage 1 ] --------------> y

Floats may differ within a tolerance, since the whole model may fuse nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anabranch.partition.errors import StageFailed, UnequalOutput, WholeModelFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.profiling.inputs import NamedArrays, generate, has_rows
from anabranch.partition.profiling.runtime import RuntimeSession, open_session
from anabranch.partition.stages.writer import StageFile
from anabranch.schemas.tensors import Array

#: Rows of generated batches, if open.
ROWS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed difference: `absolute` + `relative` * max(|float|, RMS of its output).

    Values near zero can carry the noise of larger ones.
    """

    relative: float
    absolute: float


#: Rounding noise of deep models, by datatype.
TOLERANCES: Mapping[str, Tolerance] = {
    "float16": Tolerance(1e-2, 1e-3),
    "float32": Tolerance(1e-3, 1e-5),
    "float64": Tolerance(1e-9, 1e-12),
}


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of a successful comparison.

    Attributes:
        output: Output with the largest difference.
    """

    batches: int
    largest_difference: float
    output: str | None


def prove(
    graph: Graph,
    stages: Sequence[StageFile],
    batches: Sequence[NamedArrays] = (),
    *,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> Proof:
    """Compare every output of a model and its stages.

    Args:
        graph: The model.
        stages: Its stages, in order.
        batches: Random ones if empty.
        tolerances: By dtype.

    Raises:
        WholeModelFailed: The model does not run, or outputs only NaN and infinity.
        StageFailed: A stage does not load or run.
        UnequalOutput: An output differs.
    """
    whole = open_session(graph.path, failure=WholeModelFailed, subject="the whole model")
    inputs = [dict(batch) for batch in batches] or _generated(graph, whole)
    expected = [_run_whole(whole, batch) for batch in inputs]
    del whole  # Frees memory for the stages.
    tensors = inputs
    for number, stage in enumerate(stages):
        tensors = _run_stage(number, stage, tensors, _needed_after(graph, stages[number + 1 :]))
    proof = Proof(len(inputs), 0.0, None)
    for batch, actual, outputs in zip(inputs, tensors, expected, strict=True):
        for name in graph.outputs:
            subject = f"output {name!r} of {_shapes(batch)}"
            difference = _compare(subject, outputs[name], actual[name], tolerances)
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
            if silent := [name for name, array in outputs.items() if not _can_differ(array)]:
                failed = f"output {silent[0]!r} is all NaN or infinite, which proves nothing"
                continue
            found.append(batch)
            break
        else:
            raise WholeModelFailed(
                "the model does not run on random inputs: give real ones (`anabranch plan --inputs FILE.npz`): "
                f"{failed}"
            )
    return found


def _can_differ(output: Array) -> bool:
    """Tell if wrong stages could change an output."""
    return output.dtype.kind != "f" or not output.size or bool(np.isfinite(output).any())


def _run_whole(whole: RuntimeSession, batch: NamedArrays) -> dict[str, Array]:
    return whole.run(batch, failure=WholeModelFailed, subject=f"the whole model on {_shapes(batch)}")


def _run_stage(
    number: int, stage: StageFile, batches: Sequence[NamedArrays], needed: set[str]
) -> list[dict[str, Array]]:
    """Run a stage on each batch; keep needed tensors."""
    subject = f"stage {number}"
    session = open_session(stage.path, failure=StageFailed, subject=subject)
    after = []
    for tensors in batches:
        inputs = {name: tensors[name] for name in stage.inputs}
        outputs = session.run(inputs, failure=StageFailed, subject=f"{subject} on {_shapes(inputs)}")
        after.append({name: array for name, array in {**tensors, **outputs}.items() if name in needed})
    return after


def _needed_after(graph: Graph, later: Sequence[StageFile]) -> set[str]:
    return {*graph.outputs, *(name for stage in later for name in stage.inputs)}


def _shapes(batch: NamedArrays) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items()) or "no input"


def _compare(subject: str, whole: Array, staged: Array, tolerances: Mapping[str, Tolerance]) -> float:
    """Return the largest difference of floats."""
    if whole.dtype != staged.dtype or whole.shape != staged.shape:
        raise UnequalOutput(
            f"{subject} is {whole.dtype} {list(whole.shape)} in the whole model, and {staged.dtype} "
            f"{list(staged.shape)} in stages"
        )
    if whole.dtype.kind != "f":
        different = int(np.count_nonzero(whole != staged))
        if different:
            raise UnequalOutput(f"{subject} differs in {different} of {whole.size} elements")
        return 0.0
    same = (whole == staged) | (np.isnan(whole) & np.isnan(staged))
    if same.all():
        return 0.0
    tolerance = tolerances[whole.dtype.name]
    wide: Any = np.float64
    exact = whole.astype(wide)
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(exact - staged.astype(wide)))
    finite = np.isfinite(exact)
    usual = float(np.sqrt(np.mean(np.square(exact[finite])))) if finite.any() else 0.0
    allowed = tolerance.absolute + tolerance.relative * np.maximum(np.abs(exact), usual)
    if not (apart <= np.where(finite, allowed, 0.0)).all():
        raise UnequalOutput(
            f"{subject} differs by up to {apart.max():.3g}, over the tolerance of {tolerance.absolute:g} + "
            f"{tolerance.relative:g} * the larger of |value| and {usual:.3g}"
        )
    return float(apart.max())
