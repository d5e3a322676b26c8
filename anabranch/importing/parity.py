"""Whether an ONNX model answers as the framework did from which it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anabranch.importing.errors import NotEqual
from anabranch.operators.backends.base import Session
from anabranch.schemas.tensors import Array


@dataclass(frozen=True)
class ParityCase:
    """One run of the framework's.

    Attributes:
        inputs: By the ONNX model's names.
        outputs: What the framework gave.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def read_cases(paths: Sequence[Path]) -> list[ParityCase]:
    """The cases that a converter wrote."""
    cases = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        sides = [
            {name.removeprefix(side): array for name, array in arrays.items() if name.startswith(side)}
            for side in ("in/", "out/")
        ]
        cases.append(ParityCase(*sides))
    return cases


def largest_difference(session: Session, cases: Sequence[ParityCase], tolerance: float) -> float:
    """The largest difference between an output and the framework's; 0.0 where all are equal.

    Args:
        tolerance: Of floats: absolute, and relative to the framework's value. All others must be equal.

    Raises:
        NotEqual: One differs by more, has another shape or another dtype.
    """
    largest = 0.0
    for case in cases:
        results = session.run(tuple(case.outputs), case.inputs)
        for (name, expected), got in zip(case.outputs.items(), results, strict=True):
            largest = max(largest, _difference(name, expected, got, tolerance))
    return largest


def _difference(name: str, expected: Array, got: Array, tolerance: float) -> float:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise NotEqual(
            f"output {name!r} is {got.dtype} {list(got.shape)}, and {expected.dtype} {list(expected.shape)} in the "
            "framework it comes from"
        )
    if expected.dtype.kind != "f":
        if not np.array_equal(expected, got):
            raise NotEqual(f"output {name!r} is not the framework's")
        return 0.0
    there = np.isfinite(expected) & np.isfinite(got)
    worst = float(np.abs(got[there] - expected[there]).max(initial=0.0))
    if np.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        return worst
    raise NotEqual(
        f"output {name!r} differs from the framework's, by {worst:.3g} where both are finite; "
        f"--tolerance is {tolerance:g}"
    )
