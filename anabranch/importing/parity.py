"""Compares the outputs of an ONNX model with those of its framework."""

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
    """Inputs and outputs of one run of the framework, by the names of the ONNX model."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def read_cases(paths: Sequence[Path]) -> list[ParityCase]:
    """Read the cases that the converter script wrote."""
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
    """Return the largest difference between an output and the framework's.

    Args:
        tolerance: Absolute and relative tolerance of floats; other outputs must be equal.

    Raises:
        NotEqual: An output differs by more, or in shape or dtype.
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
            f"output {name!r} is {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}: try "
            "another version of the exporter"
        )
    if expected.dtype.kind != "f":
        if not np.array_equal(expected, got):
            raise NotEqual(f"output {name!r} differs from the framework's: try another version of the exporter")
        return 0.0
    there = np.isfinite(expected) & np.isfinite(got)
    worst = float(np.abs(got[there] - expected[there]).max(initial=0.0))
    if np.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        return worst
    raise NotEqual(
        f"output {name!r} differs from the framework's by {worst:.3g} where both are finite, over {tolerance:g}: raise "
        "--tolerance if that is acceptable"
    )
