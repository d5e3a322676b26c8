"""`anabranch import` with a fake converter script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.ready_steps.exports import write_text_export

ANABRANCH = str(Path(sys.executable).with_name("anabranch"))
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_doubling_model(path: Path, batch: str | int = "batch") -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Import:
    """Runs the command in a folder, with a converter that copies prepared files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.converted = folder / "converted"
        self.converted.mkdir()
        (folder / "net.pt2").touch()
        write_doubling_model(self.converted / "model.onnx")
        self.framework_gives(ROWS * 2)
        python = folder / "python"
        # $4 is the folder for the model and the cases.
        python.write_text(f"#!/bin/sh\ncp {self.converted}/* $4\n")
        python.chmod(0o755)

    def framework_gives(self, outputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        np.savez(self.converted / "case-0.npz", **{"in/x": ROWS, "out/y": outputs})

    def __call__(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [ANABRANCH, "import", "net.pt2", "--python", str(self.folder / "python"), *options]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)


@pytest.fixture
def run_import(tmp_path: Path) -> Import:
    return Import(tmp_path)


@pytest.mark.slow
def test_import_command_equal_model_is_added(run_import: Import) -> None:
    done = run_import("--name", "net")
    assert done.returncode == 0, done.stderr
    assert (run_import.folder / "models" / "net" / "1" / "model.onnx").is_file()
    assert "[any, 3]" in done.stdout
    assert "equal to PyTorch in 1 run, within 0" in done.stdout


@pytest.mark.slow
def test_import_command_versions_are_never_replaced(run_import: Import) -> None:
    for version in ("1", "2"):
        assert f"models/net/{version}/model.onnx" in run_import("--name", "net").stdout
    done = run_import("--name", "net", "--version", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("version_there: models/net/2 already exists")


@pytest.mark.slow
def test_import_command_unequal_model_is_not_added(run_import: Import) -> None:
    run_import.framework_gives(ROWS * 3)
    done = run_import("--name", "net")
    assert done.returncode == 1
    assert "not_equal: output 'y' differs" in done.stderr
    assert not (run_import.folder / "models").exists()


@pytest.mark.slow
def test_import_command_json_has_signature(run_import: Import) -> None:
    written = json.loads(run_import("--name", "net", "-o", "json").stdout)
    assert (written["model"], written["version"], written["cases"]) == ("net", "1", 1)
    assert written["inputs"][0]["datatype"] == "FP32"


@pytest.mark.slow
def test_import_command_fixed_rows_are_printed(run_import: Import) -> None:
    write_doubling_model(run_import.converted / "model.onnx", batch=2)
    assert "need 2 rows or a multiple" in run_import("--name", "net").stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "../net"], "--name '../net' cannot be a folder"),
        (["--name", "net", "--version", "a/b"], "--version 'a/b' cannot be a folder"),
    ],
)
def test_import_command_path_as_name_is_refused(run_import: Import, options: list[str], message: str) -> None:
    done = run_import(*options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (run_import.folder / "models").exists()


@pytest.mark.slow
def test_import_command_exported_folder_becomes_a_chain(tmp_path: Path) -> None:
    folder = write_text_export(tmp_path / "export", labels=True)
    command = [ANABRANCH, "import", f"hf:{folder}", "--name", "labels"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)

    for options, message in (
        ((), "needs --task; available: text-classification, feature-extraction"),
        (("--task", "text-classification", "--version", "2"), "has no version, and takes neither --sample nor --input"),
    ):
        done = run(*options)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.replace("│", "").split())
    done = run("--task", "text-classification", "-o", "json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert [spec["name"] for spec in written["outputs"]] == ["label", "score", "scores"]
    assert (written["path"], written["task"]) == ("models/labels", "text-classification")
    assert written["batching"].startswith("model: rows do not affect each other")
    done = run("--task", "text-classification")
    assert done.returncode == 1
    assert done.stderr.startswith("version_there: models/labels already exists")


@pytest.mark.slow
def test_import_command_task_of_another_source_is_refused(run_import: Import) -> None:
    done = run_import("--name", "net", "--task", "feature-extraction")
    assert done.returncode == 2
    assert "--task and --file are for hf:DIR" in done.stderr
