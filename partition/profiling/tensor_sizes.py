"""What tensors weigh, seen in a run: where shapes cannot be inferred, and for strings."""

from collections.abc import Iterable
from dataclasses import dataclass

from anabranch.partition.errors import WholeModelFailed
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.profiling.inputs import Batch
from anabranch.partition.profiling.runtime import open_session, with_outputs
from anabranch.schemas.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Observed:
    """A tensor that was there.

    Attributes:
        shape: Every axis.
        size_bytes: On the wire.
    """

    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


def observe(graph: Graph, batch: Batch, tensors: Iterable[str]) -> dict[str, Observed]:
    """Runs the whole model on a batch, and looks at tensors in its midst.

    All of them are in memory at once: ask for those that may cross, on a batch of few rows.

    Raises:
        UncarriedTensor: One is no tensor that the wire carries.
        WholeModelFailed: The model does not run on the batch.
    """
    given = {name: array for name, array in batch.items() if name in graph.inputs}
    made = [name for name in tensors if name not in given]
    for name in made:
        graph.type_of(name)
    session = open_session(
        with_outputs(graph.model, made),
        failure=WholeModelFailed,
        who="the whole model",
        folder=graph.path.parent,
        optimize=False,
    )
    there = given | session.run(given, failure=WholeModelFailed, who="the whole model")
    return {name: _look(Tensor.from_array(name, there[name])) for name in (*given, *made)}


def _look(tensor: Tensor) -> Observed:
    return Observed(tensor.datatype, tensor.shape, len(tensor.data))
