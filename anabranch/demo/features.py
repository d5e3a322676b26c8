"""The tokens that Magika computes from a file, and the label that it derives from scores.

Magika's own code does both. Only its ONNX session is replaced, so that the job can run the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import magika
import numpy as np

from anabranch.schemas.tensors import Array

MODEL_NAME = "magika"
MODEL_VERSION = "1"
INPUT_NAME = "bytes"
OUTPUT_NAME = "target_label"
#: Length of the scores and of the tokens of a file.
LABELS = 214
TOKENS = 2_048


def model_path() -> Path:
    """Return the ONNX file in the installed `magika` package."""
    models = Path(magika.__file__).parent / "models"
    return models / magika.Magika._get_default_model_name() / "model.onnx"  # noqa: SLF001 - it has no public name


@dataclass(frozen=True)
class ModelFile:
    """A file that needs the model, and its tokens, int32 [TOKENS]."""

    path: Path
    tokens: Array


@dataclass(frozen=True)
class RuledFile:
    """A file that Magika labels without its model: empty, very short, or only white space."""

    path: Path
    label: str


@dataclass(frozen=True)
class UnreadFile:
    """A file that cannot be read, and the reason."""

    path: Path
    reason: str


class _Session:
    """Replaces the ONNX session of Magika."""

    def __init__(self, scores_of: Callable[[Array], Array]) -> None:
        self._scores_of = scores_of

    def run(self, output_names: Sequence[str], feed: dict[str, Any]) -> list[Array]:  # noqa: ARG002 - ONNX Runtime's
        """Return the scores, float32 [rows, LABELS]."""
        return [self._scores_of(np.asarray(feed[INPUT_NAME], np.int32))]


class Detector(magika.Magika):
    """Magika with another session: a function from tokens, [rows, TOKENS], to scores, [rows, LABELS]."""

    def __init__(self, scores_of: Callable[[Array], Array]) -> None:
        self._scores_of = scores_of
        super().__init__()

    def _init_onnx_session(self) -> Any:
        return _Session(self._scores_of)

    def label(self, path: Path) -> str:
        """Return the label of a file.

        Raises:
            OSError: The file cannot be read.
        """
        result = self.identify_path(path)
        if not result.ok:
            raise OSError(f"{path}: {result.status}")
        return str(result.output.label)


class FeatureReader:
    """Reads files without running the model."""

    def __init__(self) -> None:
        self._fed: list[Array] = []
        self._detector = Detector(self._keep)

    def read(self, path: Path) -> ModelFile | RuledFile | UnreadFile:
        """Return the tokens of a file, or its label, or the reason that it cannot be read."""
        self._fed.clear()
        try:
            label = self._detector.label(path)
        except (OSError, ValueError) as error:
            return UnreadFile(path, str(error))
        return ModelFile(path, self._fed[0][0]) if self._fed else RuledFile(path, label)

    def _keep(self, tokens: Array) -> Array:
        self._fed.append(tokens)
        return np.zeros((len(tokens), LABELS), np.float32)


class ScoreReader:
    """Derives labels from the job's scores."""

    def __init__(self) -> None:
        self._scores = np.zeros((1, LABELS), np.float32)
        self._detector = Detector(lambda _: self._scores)

    def label(self, file: ModelFile, scores: Array) -> str:
        """Return the label of a file from its scores, [LABELS].

        Raises:
            OSError: The file can no longer be read.
        """
        self._scores = scores[np.newaxis]
        return self._detector.label(file.path)
