"""Finds the tensors of a model that a ready step makes or reads."""

from collections.abc import Sequence

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.tensors import FLOATS


def only_input(stage: StageSpec, made: str) -> TensorSpec:
    """Return the only input, for what a step makes; raise ModelLoadFailed."""
    if len(stage.inputs) != 1:
        names = ", ".join(spec.name for spec in stage.inputs)
        raise ModelLoadFailed(f"{stage.name} has the inputs {names}, expected one for the {made}")
    return stage.inputs[0]


def output_of(stage: StageSpec, named: str, rank: int, usual: Sequence[str]) -> str:
    """Choose an output: the named one, a usual one, or the only one of a rank; raise ModelLoadFailed."""
    found = fitting_outputs(stage.outputs, rank, () if named else usual)
    if named:
        if named in found:
            return named
    elif len(found) == 1:
        return found[0]
    wanted = f"no output {named!r}" if named else f"{len(found)} outputs"
    raise ModelLoadFailed(
        f"{stage.name} has {wanted} of floats with {rank} axes, found {show_ranks(stage.outputs)}: name one as `tensor`"
    )


def fitting_outputs(specs: Sequence[TensorSpec], rank: int, usual: Sequence[str] = ()) -> list[str]:
    """Return the first usual one of the outputs of floats that may have a rank, or all of them."""
    names = [spec.name for spec in specs if spec.datatype in FLOATS and len(spec.shape) in (rank, 0)]
    return [name for name in usual if name in names][:1] or names


def show_ranks(specs: Sequence[TensorSpec]) -> str:
    """Describe tensors by their number of axes."""
    return ", ".join(f"{spec.name} of {len(spec.shape)} axes" for spec in specs)
