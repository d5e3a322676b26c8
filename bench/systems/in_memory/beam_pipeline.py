"""Beam's pipeline as a program: `python -m bench.systems.in_memory.beam_pipeline MODEL ROWS` prints rows a second."""

import logging
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

import apache_beam
import numpy as np
import onnxruntime
from apache_beam.ml.inference.base import RunInference
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy

from anabranch.schemas.tensors import Array
from bench.systems.onnx_session import open_session

BATCH_ROWS = 64

_DISTINCT_ROWS = 64
_SEED = 1


class Handler(OnnxModelHandlerNumpy):
    """Beam's handler with the common session; ONNX Runtime's options cannot be pickled.

    Args:
        model: The file.
    """

    def __init__(self, model: Path) -> None:
        super().__init__(str(model), min_batch_size=BATCH_ROWS, max_batch_size=BATCH_ROWS)
        self._model = model

    def load_model(self) -> onnxruntime.InferenceSession:
        """Load it, in the process that runs it."""
        return open_session(self._model)


class Rows(apache_beam.DoFn):
    """Makes rows where they are used.

    Args:
        distinct: float32 [rows, values]: taken in turn.
    """

    def __init__(self, distinct: Array) -> None:
        self._distinct = distinct

    def process(self, element: int) -> Iterator[Array]:
        """Rows, float32 [values] each."""
        return islice(cycle(self._distinct), element)


def predictions(pipeline: apache_beam.Pipeline, model: Path, distinct: Array, count: int) -> apache_beam.PCollection:
    """Beam's `PredictionResult` of `count` rows."""
    made = pipeline | apache_beam.Create([count], reshuffle=False) | apache_beam.ParDo(Rows(distinct))
    return made | RunInference(Handler(model))


def seconds(model: Path, count: int) -> float:
    """Duration of a pipeline of `count` rows."""
    width = open_session(model).get_inputs()[0].shape[1]
    distinct = np.random.default_rng(_SEED).random((_DISTINCT_ROWS, width), np.float32)
    start_s = perf_counter()
    with apache_beam.Pipeline(runner="DirectRunner") as pipeline:
        counted = predictions(pipeline, model, distinct, count) | apache_beam.combiners.Count.Globally()
        _ = counted | apache_beam.Map(_expect, count)
    return perf_counter() - start_s


def _expect(counted: int, count: int) -> None:
    if counted != count:
        raise ValueError(f"{counted} of {count} rows got a prediction")


def main() -> None:
    """Measure once, after one run that loads what Beam loads only then."""
    logging.disable(logging.INFO)
    model, count = Path(sys.argv[1]), int(sys.argv[2])
    one_batch_s = min(seconds(model, BATCH_ROWS) for _ in range(3))
    print(count / max(seconds(model, count) - one_batch_s, 1e-9))


if __name__ == "__main__":
    main()
