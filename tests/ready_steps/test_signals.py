"""Frames of signals."""

from typing import Any

import numpy as np
import pytest

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import FramesStep
from anabranch.ready_steps.signals import Framer
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.tensors import Array

FRAMES = TensorSpec("frames", "FP32", (None, None))


def frames(samples: Array, **options: Any) -> list[list[float]]:
    step = Framer(FramesStep(**options), StageSpec("", "", (FRAMES,), ()))
    found: list[list[float]] = step({"audio": samples})["frames"].tolist()
    return found


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (6, {"size": 3}, [[0, 1, 2], [3, 4, 5]]),
        (7, {"size": 3}, [[0, 1, 2], [3, 4, 5], [6, 0, 0]]),
        (7, {"size": 3, "pad": False}, [[0, 1, 2], [3, 4, 5]]),
        (6, {"size": 4, "hop": 2}, [[0, 1, 2, 3], [2, 3, 4, 5]]),
        (7, {"size": 4, "hop": 2}, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0]]),
        (8, {"size": 2, "hop": 3}, [[0, 1], [3, 4], [6, 7]]),
        (9, {"size": 2, "hop": 3}, [[0, 1], [3, 4], [6, 7]]),
        (10, {"size": 2, "hop": 3}, [[0, 1], [3, 4], [6, 7], [9, 0]]),
        (2, {"size": 3}, [[0, 1, 0]]),
    ],
)
def test_frames_of_a_signal_follow_each_other(count: int, options: dict[str, Any], expected: list[list[float]]) -> None:
    assert frames(np.arange(count, dtype=np.float32), **options) == expected


def test_frames_of_integers_are_scaled_to_one() -> None:
    assert frames(np.array([-32768, 16384], np.int16), size=2) == [[-1.0, 0.5]]


def test_frames_under_a_window_are_weighted() -> None:
    found = frames(np.ones(8, np.float32), size=4, hop=4, window="hann")
    np.testing.assert_allclose(found, [[0, 0.5, 1, 0.5]] * 2, atol=1e-7)


@pytest.mark.parametrize(
    ("samples", "options", "reason"),
    [
        (np.zeros(0, np.float32), {"size": 3}, "has 0 samples, expected 3 or more"),
        (np.zeros(2, np.float32), {"size": 3, "pad": False}, "has 2 samples, expected 3 or more"),
        (np.zeros((2, 3), np.float32), {"size": 3}, r"has shape \[2, 3\], expected samples in one axis"),
    ],
)
def test_frames_of_no_signal_are_refused(samples: Array, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadableInput, match=reason):
        frames(samples, **options)


def test_frames_model_of_two_inputs_is_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="expected one for the frames"):
        Framer(FramesStep(size=2), StageSpec("", "", (FRAMES, FRAMES), ()))
