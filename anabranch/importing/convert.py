"""Runs a converter in the interpreter that has its framework."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.importing import converter
from anabranch.importing.errors import FrameworkMissing, NotConverted, UnknownSource

MODEL, CASES = "model.onnx", "case-*.npz"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Framework:
    """Where a model comes from.

    Attributes:
        key: What the converter calls it.
        packages: What an interpreter needs for it.
    """

    name: str
    key: str
    packages: str


PYTORCH = Framework("PyTorch", "pytorch", "torch onnxscript")
TENSORFLOW = Framework("TensorFlow", "tensorflow", "tensorflow-cpu tf2onnx")


def framework_of(source: str) -> Framework:
    """Which framework a source is of.

    Raises:
        UnknownSource: Of none that can be imported.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        raise UnknownSource(f"{source} is an ONNX model already: copy it to REPOSITORY/NAME/1/{MODEL}")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return TENSORFLOW
        raise UnknownSource(f"{source} is a folder without a saved_model.pb: no SavedModel of TensorFlow")
    if path.is_file():
        known = {".pt2": PYTORCH, ".keras": TENSORFLOW, ".h5": TENSORFLOW}
        if path.suffix in known:
            return known[path.suffix]
        raise UnknownSource(
            f"{source}: a {path.suffix or 'file'} of weights or pickled code cannot be imported; save it with "
            "torch.export.save (.pt2), as .keras or as a SavedModel, or name the module that makes it as MODULE:NAME"
        )
    module, colon, name = source.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return PYTORCH
    raise UnknownSource(
        f"{source} is no file, and no MODULE:NAME: give a .pt2, a .keras, a SavedModel's folder, or MODULE:NAME"
    )


def convert(
    framework: Framework, source: str, out: Path, python: str, *, sample: Path | None, inputs: Sequence[str]
) -> None:
    """Puts `model.onnx` and its cases into a folder.

    Raises:
        FrameworkMissing: The interpreter lacks the framework.
        NotConverted: The framework refuses the model.
    """
    arguments = [framework.key, source, str(out)]
    if sample is not None:
        arguments += ["--sample", str(sample)]
    if inputs and framework is not PYTORCH:
        raise NotConverted(f"--input is for modules of PyTorch; a model of {framework.name} names its own inputs")
    for text in inputs:
        arguments += ["--input", text]
    try:
        done = subprocess.run(
            [python, converter.__file__, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise FrameworkMissing(f"{python} is no interpreter ({error.strerror}): name one with --python") from None
    except subprocess.TimeoutExpired:
        raise NotConverted(f"{framework.name} did not end within {_TIMEOUT_S / 60:.0f} minutes") from None
    if done.returncode == 0:
        return
    lines = done.stderr.splitlines() or [f"it ended with code {done.returncode} and without a word"]
    if done.returncode == converter.MISSING:
        which = "this interpreter" if python == sys.executable else python
        raise FrameworkMissing(
            f"{which} lacks what {framework.name} models need ({lines[-1]}): make an environment with "
            f"`uv venv FOLDER && uv pip install --python FOLDER/bin/python {framework.packages}`, and name it with "
            "--python FOLDER/bin/python"
        )
    raise NotConverted(f"{framework.name} cannot convert {source}: {lines[-1]}")
