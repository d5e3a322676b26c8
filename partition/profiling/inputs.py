"""What a model is tried on: arrays from a file, or random ones that fit what its inputs declare."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from anabranch.partition.errors import UnusableInputs
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.graph.tensor_types import TensorType
from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, Array

Batch = Mapping[str, Array]

#: What an open axis that counts no rows is tried with. Convolutions like powers of two; some models want few.
_AXIS_SIZES = (64, 32, 16, 8, 4, 2, 1, 256)
#: Integers are often places in a table, whose size nobody tells: from zero up to these.
_INTEGER_ENDS = (10, 2, 1)


def has_rows(graph: Graph) -> bool:
    """Whether axis 0 of every input is open, so that batches of several sizes can be tried."""
    shapes = [graph.type_of(name).shape for name in graph.inputs]
    return bool(shapes) and all(shape and not isinstance(shape[0], int) for shape in shapes)


def generate(graph: Graph, rows: int, *, seed: int = 0) -> Iterator[dict[str, Array]]:
    """Random batches for a model, tamer and tamer: take the first that it runs on.

    Args:
        graph: The model.
        rows: Size of axis 0 where it is open.
        seed: The same seed gives the same batches.

    Raises:
        UncarriedTensor: An input is no tensor that the wire carries.
    """
    types = {name: graph.type_of(name) for name in graph.inputs}
    row_axes = {tensor.shape[0] for tensor in types.values() if tensor.shape and has_rows(graph)}
    sizes = _AXIS_SIZES if any(_other_axes(tensor, row_axes) for tensor in types.values()) else (1,)
    ends = _INTEGER_ENDS if any(tensor.datatype not in FLOATS for tensor in types.values()) else (1,)
    for size in sizes:
        for end in ends:
            rng = np.random.default_rng(seed)
            yield {name: _array(rng, tensor, rows, row_axes, size, end) for name, tensor in types.items()}


def read_inputs(path: Path, graph: Graph) -> dict[str, Array]:
    """One batch from an `.npz` file: an array for each input, under its name.

    Raises:
        UnusableInputs: There is no such file, or it lacks an input or has one of another datatype.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UnusableInputs(f"{path} is one array: name each as the model does, in an .npz file")
        with loaded as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UnusableInputs(f"cannot read inputs from {path}: {error}") from None
    missing = [name for name in graph.inputs if name not in arrays]
    if missing:
        raise UnusableInputs(f"{path} lacks {', '.join(map(repr, missing))}: it has {', '.join(arrays) or 'nothing'}")
    batch = {}
    for name in graph.inputs:
        datatype, array = graph.type_of(name).datatype, arrays[name]
        wanted = np.dtype(object) if datatype == BYTES else NUMPY_DTYPES[datatype]
        if datatype == BYTES and array.dtype.kind == "U":
            array = array.astype(object)
        if array.dtype != wanted:
            raise UnusableInputs(f"{path}: {name!r} is {array.dtype}, and the model takes {datatype}")
        batch[name] = array
    return batch


def _other_axes(tensor: TensorType, row_axes: set[int | str | None]) -> bool:
    named = row_axes - {None}
    axes = (tensor.shape or ())[1 if row_axes else 0 :]
    return any(not isinstance(axis, int) and axis not in named for axis in axes)


def _array(
    rng: np.random.Generator, tensor: TensorType, rows: int, row_axes: set[int | str | None], size: int, end: int
) -> Array:
    # An axis with the name that the rows have counts rows too: ONNX says so.
    named = row_axes - {None}
    shape = [
        axis if isinstance(axis, int) else rows if axis in named or (place == 0 and row_axes) else size
        for place, axis in enumerate(tensor.shape or (rows,))
    ]
    if tensor.datatype == BYTES:
        return np.asarray(rng.integers(0, end, shape), str).astype(object)
    dtype = NUMPY_DTYPES[tensor.datatype]
    if tensor.datatype in FLOATS:
        return np.asarray(rng.standard_normal(shape), dtype)
    return np.asarray(rng.integers(0, 2 if tensor.datatype == "BOOL" else end, shape), dtype)
