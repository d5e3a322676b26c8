"""Chooses the framework of a source, and runs the converter script in its interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.importing import converter_script
from anabranch.importing.errors import FrameworkMissing, NotConverted, UnknownSource

MODEL, CASES = "model.onnx", "case-*.npz"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Framework:
    """A framework that models are imported from.

    Attributes:
        key: Its name on the command line of the converter script.
        packages: The packages that its interpreter needs.
    """

    name: str
    key: str
    packages: str


PYTORCH = Framework("PyTorch", "pytorch", "torch onnxscript")
TENSORFLOW = Framework("TensorFlow", "tensorflow", "tensorflow-cpu tf2onnx")


def framework_of(source: str) -> Framework:
    """Return the framework of a source.

    Raises:
        UnknownSource: No framework is known for it.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        raise UnknownSource(f"{source} is an ONNX model already: copy it to REPOSITORY/NAME/1/{MODEL}")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return TENSORFLOW
        raise UnknownSource(f"{source} is a folder without saved_model.pb: give a folder of TensorFlow's SavedModel")
    if path.is_file():
        known = {".pt2": PYTORCH, ".keras": TENSORFLOW, ".h5": TENSORFLOW}
        if path.suffix in known:
            return known[path.suffix]
        raise UnknownSource(
            f"{source} is a {path.suffix or 'file'}, which may hold pickled code and is not read: save the model with "
            "torch.export.save (.pt2), as .keras or as a SavedModel, or name its module as MODULE:NAME"
        )
    module, colon, name = source.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return PYTORCH
    raise UnknownSource(
        f"{source} is neither a file nor MODULE:NAME: give a .pt2, a .keras, a SavedModel's folder, or MODULE:NAME"
    )


def convert(
    framework: Framework, source: str, out: Path, python: str, *, sample: Path | None, inputs: Sequence[str]
) -> None:
    """Write `model.onnx` and its cases to a folder.

    Raises:
        FrameworkMissing: The interpreter lacks the framework.
        NotConverted: The framework refuses the model.
    """
    arguments = [framework.key, source, str(out)]
    if sample is not None:
        arguments += ["--sample", str(sample)]
    if inputs and framework is not PYTORCH:
        raise NotConverted(f"--input is given, but models of {framework.name} tell their shapes: leave it out")
    for text in inputs:
        arguments += ["--input", text]
    try:
        command = [python, converter_script.__file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except OSError as error:
        raise FrameworkMissing(f"cannot run {python} ({error.strerror}): name an interpreter with --python") from None
    except subprocess.TimeoutExpired:
        took = f"{_TIMEOUT_S / 60:.0f} minutes"
        raise NotConverted(f"{framework.name} did not end within {took}: import a smaller model") from None
    if done.returncode == 0:
        return
    lines = done.stderr.splitlines() or [f"it ended with code {done.returncode} and no message"]
    if done.returncode == converter_script.MISSING:
        which = "this interpreter" if python == sys.executable else python
        raise FrameworkMissing(
            f"{which} lacks a package for {framework.name} models ({lines[-1]}): make an environment with "
            f"`uv venv FOLDER && uv pip install --python FOLDER/bin/python {framework.packages}`, and give "
            "--python FOLDER/bin/python"
        )
    raise NotConverted(f"{framework.name} cannot convert {source}: {lines[-1]}")
