"""Makes vectors and labels of a model's outputs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import MASK, LabelsStep, PoolStep
from anabranch.ready_steps.row_groups import join_rows
from anabranch.ready_steps.signature import output_of
from anabranch.schemas.model import StageSpec
from anabranch.schemas.tensors import Array

#: As in PyTorch's `normalize`, and in the mean of sentence-transformers.
_LEAST_LENGTH, _LEAST_TOKENS = 1e-12, 1e-9
#: Usual names of the vectors of all tokens.
HIDDEN = ("last_hidden_state", "token_embeddings")


class Pooler:
    """Makes one vector of each row.

    Raises:
        ModelLoadFailed: The model has no fitting output.
    """

    def __init__(self, options: PoolStep, stage: StageSpec) -> None:
        self._options = options
        self.tensor = output_of(stage, options.tensor, 2 if options.mode == "none" else 3, HIDDEN)

    def __call__(self, _: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Return the vectors as `embedding`."""
        return join_rows(runs, self._pooled)

    def _pooled(self, run: Mapping[str, Array]) -> dict[str, Array]:
        tokens = np.asarray(run[self.tensor], np.float32)
        mode = self._options.mode
        vectors = tokens if mode == "none" else tokens[:, 0]
        if mode in ("mean", "max"):
            taken = np.asarray(run.get(MASK, np.ones(tokens.shape[:2])), np.float32)[:, :, None]
            if mode == "mean":
                vectors = (tokens * taken).sum(1) / np.maximum(taken.sum(1), _LEAST_TOKENS)
            else:
                vectors = np.where(taken > 0, tokens, -np.inf).max(1)
        if self._options.normalize:
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / np.maximum(lengths, _LEAST_LENGTH)
        return {"embedding": np.asarray(vectors, np.float32)}


class Labeler:
    """Makes scores of logits, and names the best.

    Raises:
        ModelLoadFailed: The model has no fitting output, or another number of labels.
    """

    def __init__(self, options: LabelsStep, folder: Path, stage: StageSpec) -> None:
        self._options = options
        self.tensor = output_of(stage, options.tensor, 2, ("logits",))
        self._labels = np.array([name.encode() for name in _labels(options, folder)], dtype=object)
        [spec] = [spec for spec in stage.outputs if spec.name == self.tensor]
        columns = spec.shape[1] if len(spec.shape) == 2 else None
        if columns not in (None, len(self._labels)):
            raise ModelLoadFailed(
                f"{self.tensor!r} of {stage.name} has {columns} columns, but there are {len(self._labels)} labels: "
                "give a label for each"
            )

    def __call__(self, _: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Return `label`, `score` and `scores`."""
        return join_rows(runs, self._named)

    def _named(self, run: Mapping[str, Array]) -> dict[str, Array]:
        logits = np.asarray(run[self.tensor], np.float32)
        if logits.shape[1:] != self._labels.shape:
            raise ValueError(f"{self.tensor!r} has shape {list(logits.shape)}, expected {len(self._labels)} columns")
        scores = _SCORES[self._options.function](logits)
        best = scores.argmax(1)
        return {"label": self._labels[best], "score": scores[np.arange(len(best)), best], "scores": scores}


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def _sigmoid(logits: Array) -> Array:
    # Neither side overflows.
    power = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, power) / (1 + power), np.float32)


_SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda logits: logits,
}


def _labels(options: LabelsStep, folder: Path) -> Sequence[str]:
    if not isinstance(options.labels, str):
        return options.labels
    path = folder / options.labels
    try:
        found: Any = json.loads(path.read_bytes())["id2label"]
        return [str(found[str(number)]) for number in range(len(found))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadFailed(
            f"cannot read the labels in {path}: {type(error).__name__}: {error}; write id2label with the numbers from "
            "0, or labels as a list"
        ) from None
