"""What Magika feeds its model with, and what it makes of the scores: all of it by Magika's own code.

Magika reads a file, looks at what needs no model (empty, very short, unreadable), turns the rest into 2,048 tokens,
runs the model, and applies thresholds to the scores. Here it does all of that, but for the session, which is ours.
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
#: Kinds of files that the model tells apart, and tokens of a file that it looks at.
LABELS = 214
TOKENS = 2_048


def model_path() -> Path:
    """The ONNX file in the installed `magika` package."""
    models = Path(magika.__file__).parent / "models"
    return models / magika.Magika._get_default_model_name() / "model.onnx"  # noqa: SLF001 - it has no public name


@dataclass(frozen=True)
class ModelFile:
    """A file that Magika asks its model about.

    Attributes:
        tokens: int32, [TOKENS].
    """

    path: Path
    tokens: Array


@dataclass(frozen=True)
class RuledFile:
    """A file for which Magika needs no model: empty, very short, or nothing but white space."""

    path: Path
    label: str


@dataclass(frozen=True)
class UnreadFile:
    """A file that could not be read; `reason` says why."""

    path: Path
    reason: str


class _Session:
    """Stands where Magika expects its ONNX session."""

    def __init__(self, scores_of: Callable[[Array], Array]) -> None:
        self._scores_of = scores_of

    def run(self, output_names: Sequence[str], feed: dict[str, Any]) -> list[Array]:  # noqa: ARG002 - ONNX Runtime's
        """Scores, float32 [rows, LABELS]."""
        return [self._scores_of(np.asarray(feed[INPUT_NAME], np.int32))]


class Detector(magika.Magika):
    """Magika with another session.

    Args:
        scores_of: From tokens, int32 [rows, TOKENS], to scores, float32 [rows, LABELS].
    """

    def __init__(self, scores_of: Callable[[Array], Array]) -> None:
        self._scores_of = scores_of
        super().__init__()

    def _init_onnx_session(self) -> Any:
        return _Session(self._scores_of)

    def label(self, path: Path) -> str:
        """What Magika says that a file is.

        Raises:
            OSError: The file cannot be read.
        """
        result = self.identify_path(path)
        if not result.ok:
            raise OSError(f"{path}: {result.status}")
        return str(result.output.label)


class FeatureReader:
    """Reads files as Magika does, up to the point where it would run its model."""

    def __init__(self) -> None:
        self._fed: list[Array] = []
        self._detector = Detector(self._keep)

    def read(self, path: Path) -> ModelFile | RuledFile | UnreadFile:
        """The file's tokens; or its label, where Magika needs no model; or why it could not be read."""
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
    """Magika's last step: from scores that something else computed to a label."""

    def __init__(self) -> None:
        self._scores = np.zeros((1, LABELS), np.float32)
        self._detector = Detector(lambda _: self._scores)

    def label(self, file: ModelFile, scores: Array) -> str:
        """The label for a file, given the model's scores for it, [LABELS].

        Raises:
            OSError: The file cannot be read any more.
        """
        self._scores = scores[np.newaxis]
        return self._detector.label(file.path)
