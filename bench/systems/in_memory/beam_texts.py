"""Beam's pipeline for texts.

`python -m bench.systems.in_memory.beam_texts MODEL WORKLOAD COUNT` prints texts a second.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import apache_beam
import numpy as np
import onnxruntime
from apache_beam.ml.inference.base import ModelHandler, RunInference

from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from bench.systems.in_memory.beam_pipeline import BATCH_ROWS
from bench.systems.onnx_session import open_session
from bench.workloads.workload import Workload


class TextHandler(ModelHandler):
    """Runs the texts of a batch that are equally long together.

    Args:
        model: The file.
    """

    def __init__(self, model: Path) -> None:
        self._model = model

    def load_model(self) -> onnxruntime.InferenceSession:
        """Load it, in the process that runs it."""
        return open_session(self._model)

    def run_inference(
        self,
        batch: Sequence[Mapping[str, Array]],
        model: onnxruntime.InferenceSession,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002 - Beam's
    ) -> Iterator[Array]:
        """Yield the answer to each text."""
        by_shape: dict[tuple[int, ...], list[Mapping[str, Array]]] = {}
        for text in batch:
            by_shape.setdefault(next(iter(text.values())).shape, []).append(text)
        for texts in by_shape.values():
            yield from model.run(None, {name: np.concatenate([text[name] for text in texts]) for name in texts[0]})[0]

    def batch_elements_kwargs(self) -> dict[str, int]:
        """See `apache_beam.BatchElements`."""
        return {"min_batch_size": BATCH_ROWS, "max_batch_size": BATCH_ROWS}


class Texts(apache_beam.DoFn):
    """Decodes requests of a workload where they are used."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: int) -> Iterator[dict[str, Array]]:
        """Yield the inputs of that many requests."""
        workload = Workload.load(Path(self._path))
        for number in range(element):
            request = codec.decode_request(workload.message(number))
            yield {tensor.name: tensor.to_array() for tensor in request.inputs}


def seconds(model: Path, workload: Path, count: int) -> float:
    """Duration of a pipeline of `count` texts."""
    start_s = perf_counter()
    with apache_beam.Pipeline(runner="DirectRunner") as pipeline:
        texts = pipeline | apache_beam.Create([count], reshuffle=False) | apache_beam.ParDo(Texts(str(workload)))
        counted = texts | RunInference(TextHandler(model)) | apache_beam.combiners.Count.Globally()
        _ = counted | apache_beam.Map(_expect, count)
    return perf_counter() - start_s


def _expect(counted: int, count: int) -> None:
    if counted != count:
        raise ValueError(f"{counted} of {count} texts got an answer")


def main() -> None:
    """Measure once, after one run that loads what Beam loads only then."""
    logging.disable(logging.INFO)
    model, workload, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    few = 1
    start_s = min(seconds(model, workload, few) for _ in range(2))
    print((count - few) / max(seconds(model, workload, count) - start_s, 1e-9))


if __name__ == "__main__":
    main()
