"""Inputs to try a model on: from a file, or random."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from anabranch.partition.errors import UnusableInputs
from anabranch.partition.graph.model_graph import Graph
from anabranch.partition.graph.tensor_types import TensorType
from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, Array

NamedArrays = Mapping[str, Array]

#: Sizes to try for an open axis other than the rows.
_AXIS_SIZES = (64, 32, 16, 8, 4, 2, 1, 256)
#: Upper ends to try for integers, which can be indices.
_INTEGER_ENDS = (10, 2, 1)


def has_rows(graph: Graph) -> bool:
    """Tell if axis 0 of every input is open."""
    shapes = [graph.type_of(name).shape for name in graph.inputs]
    return bool(shapes) and all(shape and not isinstance(shape[0], int) for shape in shapes)


def generate(graph: Graph, rows: int, *, seed: int = 0) -> Iterator[dict[str, Array]]:
    """Yield random batches to try, the most demanding first.

    Raises:
        UncarriedTensor: The wire cannot carry an input.
    """
    types = {name: graph.type_of(name) for name in graph.inputs}
    row_axes = {tensor.shape[0] for tensor in types.values() if tensor.shape and has_rows(graph)}
    sizes = _AXIS_SIZES if any(_has_other_open_axes(tensor, row_axes) for tensor in types.values()) else (1,)
    ends = _INTEGER_ENDS if any(tensor.datatype not in FLOATS for tensor in types.values()) else (1,)
    for size in sizes:
        for end in ends:
            rng = np.random.default_rng(seed)
            yield {name: _array(rng, tensor, rows, row_axes, size, end) for name, tensor in types.items()}


def read_inputs(path: Path, graph: Graph) -> dict[str, Array]:
    """Read one batch from an `.npz` file that holds an array for each input.

    Raises:
        UnusableInputs: The file does not fit the model.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UnusableInputs(f"{path} is a single array: save an .npz file with one array for each input")
        with loaded as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UnusableInputs(f"cannot read inputs from {path}: {error}") from None
    missing = [name for name in graph.inputs if name not in arrays]
    if missing:
        raise UnusableInputs(f"{path} lacks {', '.join(map(repr, missing))}; it has {', '.join(arrays) or 'no arrays'}")
    batch = {}
    for name in graph.inputs:
        datatype, array = graph.type_of(name).datatype, arrays[name]
        wanted = np.dtype(object) if datatype == BYTES else NUMPY_DTYPES[datatype]
        if datatype == BYTES and array.dtype.kind == "U":
            array = array.astype(object)
        if array.dtype != wanted:
            raise UnusableInputs(f"{path}: {name!r} is {array.dtype}, expected {datatype}")
        batch[name] = array
    return batch


def _has_other_open_axes(tensor: TensorType, row_axes: set[int | str | None]) -> bool:
    named = row_axes - {None}
    axes = (tensor.shape or ())[1 if row_axes else 0 :]
    return any(not isinstance(axis, int) and axis not in named for axis in axes)


def _array(
    rng: np.random.Generator, tensor: TensorType, rows: int, row_axes: set[int | str | None], size: int, end: int
) -> Array:
    # ONNX axes of one name have one size.
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
