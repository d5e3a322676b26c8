"""Python functions as models, for tests."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array


class FakeSession:
    """Session that records batch sizes."""

    def __init__(self, run: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> None:
        self._run = run
        self.batches: list[int] = []

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Return the requested outputs."""
        self.batches.append(next(iter(inputs.values())).shape[0])
        results = self._run(inputs)
        return [np.asarray(results[name], order="C") for name in outputs]


class FakeBackend:
    """Back-end of one function."""

    def __init__(self, run: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> None:
        self._run = run

    def load(self, model: ModelSpec) -> FakeSession:
        """Return a session."""
        return FakeSession(self._run)
