"""Options of ready steps: names, files, and values that do not fit together."""

from typing import Any

import msgspec
import pytest

from anabranch.ready_steps.options import (
    FramesStep,
    LabelsStep,
    PictureStep,
    PoolStep,
    ReadyStep,
    TokenizeStep,
    files_of,
    keeps_rows,
    name_of,
)


@pytest.mark.parametrize(
    ("step", "name", "files"),
    [
        (TokenizeStep(file="t.json"), "tokenize", ("t.json",)),
        (PictureStep(), "picture", ()),
        (FramesStep(size=4), "frames", ()),
        (PoolStep(), "pool", ()),
        (LabelsStep(), "labels", ("config.json",)),
        (LabelsStep(labels=("a", "b")), "labels", ()),
    ],
)
def test_ready_step_has_its_name_and_files(step: ReadyStep, name: str, files: tuple[str, ...]) -> None:
    assert (name_of(step), files_of(step)) == (name, files)
    assert msgspec.convert({"step": name, **msgspec.to_builtins(step)}, type(step)) == step


def test_ready_step_of_frames_alone_changes_rows() -> None:
    assert [keeps_rows(each) for each in (TokenizeStep(), PictureStep(), FramesStep(size=1), None)] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"crop": [3]}, r"crop is \[3\], expected height and width"),
        ({"mean": [0.5]}, "mean has 1 values, expected 3"),
        ({"channels": "L", "std": [1, 1, 1]}, "std has 3 values, expected 1"),
        ({"resize": [1, 2, 3]}, "length <= 2"),
        ({"resize": [0]}, ">= 1"),
        ({"std": [0, 1, 1]}, "> 0"),
    ],
)
def test_picture_step_invalid_values_are_refused(written: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert({"step": "picture", **written}, PictureStep)
