"""Frameworks of sources, and errors of the converter script."""

import sys
from pathlib import Path

import pytest

from anabranch.importing.conversion import PYTORCH, TENSORFLOW, Framework, convert, framework_of
from anabranch.importing.errors import FrameworkMissing, NotConverted, UnknownSource


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("name", "framework"), [("net.pt2", PYTORCH), ("net.keras", TENSORFLOW), ("net.h5", TENSORFLOW)]
)
def test_framework_of_file_follows_suffix(tmp_path: Path, name: str, framework: Framework) -> None:
    (tmp_path / name).touch()
    assert framework_of(str(tmp_path / name)) is framework


def test_framework_of_folder_needs_saved_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownSource, match=r"saved_model\.pb"):
        framework_of(str(tmp_path))
    (tmp_path / "saved_model.pb").touch()
    assert framework_of(str(tmp_path)) is TENSORFLOW


def test_framework_of_module_path_is_pytorch() -> None:
    assert framework_of("package.module:Net") is PYTORCH
    assert framework_of("module:nets.small") is PYTORCH


@pytest.mark.parametrize(
    ("source", "advice"),
    [("there.onnx", "copy it"), ("nowhere", "MODULE:NAME"), ("a/b:c", "MODULE:NAME"), ("a:", "MODULE:NAME")],
)
def test_framework_of_unknown_source_gives_advice(source: str, advice: str) -> None:
    with pytest.raises(UnknownSource, match=advice):
        framework_of(source)


def test_framework_of_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").touch()
    with pytest.raises(UnknownSource, match=r"torch\.export\.save"):
        framework_of(str(tmp_path / "net.pth"))


def test_convert_missing_framework_gives_advice(tmp_path: Path) -> None:
    with pytest.raises(FrameworkMissing, match=r"this interpreter lacks .*uv venv .*tensorflow-cpu tf2onnx.*--python"):
        convert(TENSORFLOW, "net.keras", tmp_path, sys.executable, sample=None, inputs=())
    for python in (tmp_path / "python", tmp_path):
        with pytest.raises(FrameworkMissing, match=r"cannot run .*: name an interpreter with --python"):
            convert(PYTORCH, "net.pt2", tmp_path, str(python), sample=None, inputs=())


def test_convert_failure_quotes_last_line(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo noise >&2; echo 'no such operator: Foo' >&2; exit 4")
    with pytest.raises(NotConverted, match=r"PyTorch cannot convert net\.pt2: no such operator: Foo"):
        convert(PYTORCH, "net.pt2", tmp_path, python, sample=None, inputs=())


def test_convert_silent_failure_names_exit_code(tmp_path: Path) -> None:
    with pytest.raises(NotConverted, match="code 7"):
        convert(PYTORCH, "net.pt2", tmp_path, fake_python(tmp_path, "exit 7"), sample=None, inputs=())


def test_convert_input_shapes_need_a_module(tmp_path: Path) -> None:
    with pytest.raises(NotConverted, match="--input"):
        convert(TENSORFLOW, "net.keras", tmp_path, sys.executable, sample=None, inputs=["x=float32[2]"])
