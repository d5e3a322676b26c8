"""Comparison of ONNX Runtime's outputs with the framework's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from anabranch.importing.errors import NotEqual
from anabranch.importing.parity import ParityCase, largest_difference, read_cases
from anabranch.operators.backends.fake import FakeSession
from anabranch.schemas.tensors import Array

X = np.array([[1.0, 2.0], [3.0, np.inf]], np.float32)


def session_that_gives(**outputs: Array) -> FakeSession:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return outputs

    return FakeSession(run)


def difference(expected: Array, got: Array, tolerance: float = 1e-3) -> float:
    return largest_difference(session_that_gives(y=got), [ParityCase({"x": X}, {"y": expected})], tolerance)


def test_largest_difference_equal_outputs_is_zero() -> None:
    assert difference(X, X.copy()) == 0.0
    assert difference(np.array([1, 2]), np.array([1, 2])) == 0.0


def test_largest_difference_covers_all_cases() -> None:
    near, far = X + np.float32(1e-4), X + np.float32(5e-4)
    cases = [ParityCase({"x": X}, {"y": near}), ParityCase({"x": X}, {"y": far})]
    assert largest_difference(session_that_gives(y=X), cases, 1e-3) == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (X, X + np.float32(0.1)),
        (X, X.astype(np.float64)),
        (X, X[:1]),
        (np.array([1, 2]), np.array([1, 3])),
        (X, np.full_like(X, np.nan)),
        (np.array(["a"], object), np.array(["b"], object)),
    ],
    ids=["value", "dtype", "shape", "integer", "not a number", "text"],
)
def test_largest_difference_other_output_is_refused(expected: Array, got: Array) -> None:
    with pytest.raises(NotEqual, match="'y'"):
        difference(expected, got)


def test_read_cases_separates_inputs_and_outputs(tmp_path: Path) -> None:
    paths: Sequence[Path] = [tmp_path / "case-0.npz"]
    np.savez(paths[0], **{"in/x": X, "in/in/deep": X[:1], "out/y": X * 2})
    [case] = read_cases(paths)
    assert set(case.inputs) == {"x", "in/deep"}
    assert np.array_equal(case.outputs["y"], X * 2)
