"""Makes the function of a ready step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.answers import Labeler, Pooler
from anabranch.ready_steps.options import (
    FramesStep,
    LabelsStep,
    PictureStep,
    PoolStep,
    TokenizeStep,
)
from anabranch.ready_steps.pictures import PictureReader
from anabranch.ready_steps.signals import Framer
from anabranch.ready_steps.texts import BatchTokenizer
from anabranch.schemas.model import StageSpec

#: Extra that brings a package.
_EXTRAS = {"PIL": "pictures", "tokenizers": "text"}


def make_step(options: msgspec.Struct, folder: Path, stage: StageSpec) -> Callable[..., Any]:
    """Make `before` or `after` of a step.

    Args:
        folder: Has the files that the options name.
        stage: The model.

    Raises:
        ModelLoadFailed: A package or file is missing, or the model does not fit.
    """
    try:
        match options:
            case TokenizeStep():
                return BatchTokenizer(options, folder, stage)
            case PictureStep():
                return PictureReader(options, stage)
            case FramesStep():
                return Framer(options, stage)
            case PoolStep():
                return Pooler(options, stage)
            case LabelsStep():
                return Labeler(options, folder, stage)
            case _:
                raise TypeError(f"{type(options).__name__} is not a ready step")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        step, install = options.__struct_config__.tag, f"pip install 'anabranch[{_EXTRAS[package]}]'"
        raise ModelLoadFailed(
            f"step {step!r} needs the package {package!r}: run {install} on each machine of the cluster"
        ) from None
