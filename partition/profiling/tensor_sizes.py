"""Measures tensors in a run."""

from collections.abc import Iterable
from dataclasses import dataclass

from anabranch.partition.errors import WholeModelFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.profiling.inputs import NamedArrays
from anabranch.partition.profiling.runtime import open_session, with_outputs
from anabranch.schemas.tensors import Tensor


@dataclass(frozen=True, slots=True)
class ObservedTensor:
    """Tensor of a run, with its size on the wire."""

    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


def observe(graph: Graph, batch: NamedArrays, tensors: Iterable[str]) -> dict[str, ObservedTensor]:
    """Measure tensors in a run, which holds all of them: use few rows.

    Raises:
        UncarriedTensor: The wire cannot carry one of them.
        WholeModelFailed: The model does not run on the batch.
    """
    given = {name: array for name, array in batch.items() if name in graph.inputs}
    made = [name for name in tensors if name not in given]
    for name in made:
        graph.type_of(name)
    session = open_session(
        with_outputs(graph.model, made),
        failure=WholeModelFailed,
        subject="the whole model",
        folder=graph.path.parent,
        optimize=False,
    )
    arrays = given | session.run(given, failure=WholeModelFailed, subject="the whole model")
    return {name: _observed(Tensor.from_array(name, arrays[name])) for name in (*given, *made)}


def _observed(tensor: Tensor) -> ObservedTensor:
    return ObservedTensor(tensor.datatype, tensor.shape, len(tensor.data))
