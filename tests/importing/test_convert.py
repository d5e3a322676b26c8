"""What is of which framework, and what a converter's end is to a person."""

import sys
from pathlib import Path

import pytest

from anabranch.importing.convert import PYTORCH, TENSORFLOW, Framework, convert, framework_of
from anabranch.importing.errors import FrameworkMissing, NotConverted, UnknownSource


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("name", "framework"), [("net.pt2", PYTORCH), ("net.keras", TENSORFLOW), ("net.h5", TENSORFLOW)]
)
def test_a_file_is_known_by_its_name(tmp_path: Path, name: str, framework: Framework) -> None:
    (tmp_path / name).touch()
    assert framework_of(str(tmp_path / name)) is framework


def test_a_saved_model_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownSource, match=r"saved_model\.pb"):
        framework_of(str(tmp_path))
    (tmp_path / "saved_model.pb").touch()
    assert framework_of(str(tmp_path)) is TENSORFLOW


def test_a_module_is_named_with_a_colon() -> None:
    assert framework_of("package.module:Net") is PYTORCH
    assert framework_of("module:nets.small") is PYTORCH


@pytest.mark.parametrize(
    ("source", "advice"),
    [("there.onnx", "copy it"), ("nowhere", "MODULE:NAME"), ("a/b:c", "MODULE:NAME"), ("a:", "MODULE:NAME")],
)
def test_what_cannot_be_imported_is_told_what_to_do(source: str, advice: str) -> None:
    with pytest.raises(UnknownSource, match=advice):
        framework_of(source)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").touch()
    with pytest.raises(UnknownSource, match=r"torch\.export\.save"):
        framework_of(str(tmp_path / "net.pth"))


def test_an_interpreter_without_the_framework_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FrameworkMissing, match=r"this interpreter lacks .*uv venv .*tensorflow-cpu tf2onnx.*--python"):
        convert(TENSORFLOW, "net.keras", tmp_path, sys.executable, sample=None, inputs=())
    for python in (tmp_path / "python", tmp_path):
        with pytest.raises(FrameworkMissing, match=r"is no interpreter .* name one with --python"):
            convert(PYTORCH, "net.pt2", tmp_path, str(python), sample=None, inputs=())


def test_the_last_line_of_a_converter_says_why(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo noise >&2; echo 'no such operator: Foo' >&2; exit 4")
    with pytest.raises(NotConverted, match=r"PyTorch cannot convert net\.pt2: no such operator: Foo"):
        convert(PYTORCH, "net.pt2", tmp_path, python, sample=None, inputs=())


def test_a_converter_that_dies_without_a_word_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(NotConverted, match="code 7"):
        convert(PYTORCH, "net.pt2", tmp_path, fake_python(tmp_path, "exit 7"), sample=None, inputs=())


def test_shapes_are_for_modules_only(tmp_path: Path) -> None:
    with pytest.raises(NotConverted, match="--input"):
        convert(TENSORFLOW, "net.keras", tmp_path, sys.executable, sample=None, inputs=["x=float32[2]"])
