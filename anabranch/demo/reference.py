"""What the answers must be: the same model on the same input, run directly; and what Magika itself says."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anabranch.demo.features import INPUT_NAME, OUTPUT_NAME, Detector, ModelFile, model_path
from anabranch.onnx_runtime.session import open_session
from anabranch.schemas.tensors import Array

#: An answer equals a direct run when no score differs by more.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class References:
    """What the answers are compared with.

    Attributes:
        scores: Of a direct run of each file alone, float32 [files, LABELS].
        large_scores: Of a direct run of the large request's rows, float32 [rows, LABELS].
        labels: What Magika says that each file is; empty where it could not read the file again.
    """

    scores: Array
    large_scores: Array
    labels: list[str]


def compute(files: list[ModelFile], large: Array, on_row: Callable[[int], object]) -> References:
    """Runs the model on every file twice, in two sessions: once directly, once inside Magika.

    Args:
        large: The large request's rows, int32 [rows, TOKENS].
        on_row: Called with the number of rows done, from two threads.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, "reference") as thread:
        try:
            labels = thread.submit(_magika_labels, files, on_row, stopped)
            # Of one row the model's layer normalisation sums in another order than of several (ONNX Runtime takes
            # another kernel), which changes some scores in the third decimal: each is compared with its own kind.
            scores = run_directly([file.tokens[np.newaxis] for file in files], on_row)
            large_scores = run_directly([large[start : start + 32] for start in range(0, len(large), 32)], on_row)
            return References(scores, large_scores, labels.result())
        except BaseException:
            stopped.set()  # the thread would be waited for
            raise


def run_directly(batches: list[Array], on_row: Callable[[int], object]) -> Array:
    """The model's scores for batches of tokens, in one session of its own: float32 [all rows, LABELS]."""
    session = open_session(model_path())
    scores = []
    for batch in batches:
        scores.append(session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0])
        on_row(len(batch))
    return np.concatenate(scores)


def differing_rows(answers: Array, reference: Array) -> Array:
    """Which rows of the answers are not within `TOLERANCE` of the reference; NaN, no answer, differs."""
    rows: Array = np.flatnonzero(~(np.abs(answers - reference) <= TOLERANCE).all(axis=1))
    return rows


def _magika_labels(files: list[ModelFile], on_row: Callable[[int], object], stopped: threading.Event) -> list[str]:
    # Its own session would take every core, and the direct run needs one.
    session = open_session(model_path())
    detector = Detector(lambda tokens: session.run([OUTPUT_NAME], {INPUT_NAME: tokens})[0])
    labels = []
    for file in files:
        if stopped.is_set():
            break
        labels.append(_label(detector, file.path))
        on_row(1)
    return labels


def _label(detector: Detector, path: Path) -> str:
    try:
        return detector.label(path)
    except OSError:
        return ""
