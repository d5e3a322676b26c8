"""Interface of runtimes that execute models."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import NUMPY_DTYPES, Array


class Session(Protocol):
    """Loaded model."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Run one batch.

        Args:
            outputs: Names of the requested outputs.
            inputs: All inputs; BYTES as object arrays.

        Returns:
            Outputs in order, C-contiguous.

        Raises:
            Exception: The batch failed.
        """
        ...


class Backend(Protocol):
    """Loader of models."""

    def load(self, model: ModelSpec) -> Session:
        """Load and warm up a model.

        Raises:
            ModelLoadFailed: It is unusable.
        """
        ...


class ModelLoadFailed(AnabranchError):
    """A model cannot be read or loaded."""

    code = "model_load_failed"


def zeros(model: ModelSpec, rows: int) -> dict[str, Array]:
    """Make inputs of zeros or empty strings; other open axes are 1."""
    inputs: dict[str, Array] = {}
    for spec in model.inputs:
        shape = [axis or 1 for axis in spec.shape]
        if model.batchable:
            shape[0] = rows
        dtype = NUMPY_DTYPES.get(spec.datatype)
        inputs[spec.name] = np.full(shape, b"", dtype=object) if dtype is None else np.zeros(shape, dtype)
    return inputs
