"""A limit: ONNX Runtime in a loop over texts that are sorted by their length, for it knows all of them beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from anabranch.schemas.tensors import Array
from bench.systems.onnx_session import open_session

BATCH_TEXTS = 32


@dataclass(frozen=True)
class LoopResult:
    """A loop over all texts.

    Attributes:
        answers: Output of each text, without what was filled up, in the order of the texts.
    """

    rate_per_s: float
    answers: Sequence[Array]


def run_sorted(model: Path, texts: Sequence[Mapping[str, Array]]) -> LoopResult:
    """Sort texts by length, fill each batch up to its longest, and run it on one thread."""
    session = open_session(model)
    # Brings the weights into memory.
    session.run(None, _filled(texts[:BATCH_TEXTS]))
    outputs: list[tuple[Sequence[int], Array]] = []
    start_s = perf_counter()
    order = sorted(range(len(texts)), key=lambda number: _length_of(texts[number]))
    for first in range(0, len(order), BATCH_TEXTS):
        batch = order[first : first + BATCH_TEXTS]
        outputs.append((batch, session.run(None, _filled([texts[number] for number in batch]))[0]))
    rate_per_s = len(texts) / (perf_counter() - start_s)
    answers: list[Array] = [np.empty(0, np.float32)] * len(texts)
    for chosen, output in outputs:
        for row, number in enumerate(chosen):
            answers[number] = output[row, : _length_of(texts[number])].ravel()
    return LoopResult(rate_per_s, answers)


def _length_of(text: Mapping[str, Array]) -> int:
    return int(next(iter(text.values())).shape[1])


def _filled(texts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    longest = max(map(_length_of, texts))
    filled = {name: np.zeros((len(texts), longest), array.dtype) for name, array in texts[0].items()}
    for row, text in enumerate(texts):
        for name, array in text.items():
            filled[name][row, : array.shape[1]] = array[0]
    return filled
