"""Ready steps without their packages."""

import sys
from pathlib import Path

import pytest

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.factory import make_step
from anabranch.ready_steps.options import PictureStep, ReadyStep, TokenizeStep
from anabranch.schemas.model import StageSpec

STAGE = StageSpec("", "", (), ())


@pytest.mark.parametrize(
    ("step", "package", "line"),
    [
        (
            TokenizeStep(),
            "tokenizers",
            "step 'tokenize' needs the package 'tokenizers': run pip install 'anabranch[text]'",
        ),
        (PictureStep(), "PIL", "step 'picture' needs the package 'PIL': run pip install 'anabranch[pictures]'"),
    ],
)
def test_ready_step_without_its_package_names_the_extra(
    step: ReadyStep, package: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelLoadFailed) as failed:
        make_step(step, Path(), STAGE)
    assert failed.value.message == f"{line} on each machine of the cluster"
