"""The expected answers: scores of direct ONNX Runtime runs, and Magika's own labels."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anabranch.demo.features import INPUT_NAME, OUTPUT_NAME, Detector, ModelFile, model_path
from anabranch.onnx_runtime.session import open_session
from anabranch.schemas.tensors import Array

#: Largest difference of a score from a direct run.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class References:
    """The expected answers.

    Attributes:
        scores: float32 [files, LABELS], each file run alone.
        large_scores: float32 [rows of the large request, LABELS].
        labels: Magika's labels; empty for files that it could not read again.
    """

    scores: Array
    large_scores: Array
    labels: list[str]


def compute(files: list[ModelFile], large: Array, on_row: Callable[[int], object]) -> References:
    """Run the model on every file directly, and inside Magika on another thread.

    Args:
        large: The large request's rows, int32 [rows, TOKENS].
        on_row: Called with the number of rows done, from two threads.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, "reference") as thread:
        try:
            labels = thread.submit(_magika_labels, files, on_row, stopped)
            # Scores of single rows and of batches differ in the third decimal: ONNX Runtime uses other kernels.
            scores = run_directly([file.tokens[np.newaxis] for file in files], on_row)
            large_scores = run_directly([large[start : start + 32] for start in range(0, len(large), 32)], on_row)
            return References(scores, large_scores, labels.result())
        except BaseException:
            stopped.set()  # the executor waits for its thread
            raise


def run_directly(batches: list[Array], on_row: Callable[[int], object]) -> Array:
    """Return the scores for batches of tokens: float32 [all rows, LABELS]."""
    session = open_session(model_path())
    scores = []
    for batch in batches:
        scores.append(session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0])
        on_row(len(batch))
    return np.concatenate(scores)


def differing_rows(answers: Array, reference: Array) -> Array:
    """Return the rows that are not within `TOLERANCE` of the reference; NaN differs."""
    rows: Array = np.flatnonzero(~(np.abs(answers - reference) <= TOLERANCE).all(axis=1))
    return rows


def _magika_labels(files: list[ModelFile], on_row: Callable[[int], object], stopped: threading.Event) -> list[str]:
    # Magika's own session would take every core.
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
