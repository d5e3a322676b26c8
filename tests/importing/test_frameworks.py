"""`anabranch import` with real frameworks, each in its own environment (`make frameworks`)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import ModelSpec
from deploy.environments import environment

HERE = Path(__file__).parent
ANABRANCH = str(Path(sys.executable).with_name("anabranch"))

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(900)]


class Frame:
    """A folder with sources of one framework, and its interpreter."""

    def __init__(self, framework: str, folder: Path) -> None:
        self.folder = folder
        self._python = str(environment(f"import-{framework}", HERE / f"{framework}.lock"))
        script = folder / f"{framework}_models.py"
        script.write_text((HERE / script.name).read_text())
        subprocess.run([self._python, script.name, "."], cwd=folder, check=True, capture_output=True)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [ANABRANCH, "import", "--python", self._python, *options]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def load(self, source: str, name: str, *options: str) -> ModelSpec:
        done = self.run(source, "--name", name, *options)
        assert done.returncode == 0, done.stderr
        return read_repository(self.folder / "models", ModelDefaults()).find(name, "1")


@pytest.fixture(scope="module")
def pytorch(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    return Frame("pytorch", tmp_path_factory.mktemp("pytorch"))


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    return Frame("tensorflow", tmp_path_factory.mktemp("tensorflow"))


def test_import_pt2_file_keeps_free_rows(pytorch: Frame) -> None:
    model = pytorch.load("encoder.pt2", "encoder")
    assert model.batchable
    assert [(spec.name, spec.datatype, spec.shape) for spec in model.inputs] == [("tokens", "INT64", (None, 7))]
    [scores] = OnnxBackend().load(model).run(["output"], {"tokens": np.ones((5, 7), np.int64)})
    assert scores.shape == (5, 5)
    assert np.allclose(scores, scores[0])


@pytest.mark.parametrize("source", ["pytorch_models:Pair", "pytorch_models:make_pair"])
def test_import_module_path_gives_named_outputs(pytorch: Frame, source: str) -> None:
    name = source.rpartition(":")[2]
    model = pytorch.load(source, name, "--input", "left=float32[1,4]", "--input", "right=float32[1,4]")
    assert model.batchable
    assert [spec.name for spec in model.outputs] == ["product", "largest"]


def test_import_sample_inputs_are_ordered_by_name(pytorch: Frame) -> None:
    arrays = {name: np.full((2, 4), 3, np.float32) for name in ("right", "left")}
    np.savez(pytorch.folder / "sample.npz", **arrays)
    model = pytorch.load("pytorch_models:Pair", "sampled", "--sample", "sample.npz")
    assert [spec.name for spec in model.inputs] == ["left", "right"]


def test_import_mixed_rows_stay_fixed(pytorch: Frame) -> None:
    model = pytorch.load("pytorch_models:Mixed", "mixed", "--input", "x=float32[2,3]")
    assert model.fixed_rows == 2


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        ("pytorch_models:Pair", [], "--sample"),
        ("pytorch_models:Nobody", ["--input", "x=float32[2,3]"], "has no Nobody"),
        ("pytorch_models:sys", ["--input", "x=float32[2,3]"], "torch.nn.Module"),
        ("no_such_module:Net", ["--input", "x=float32[2,3]"], "no_such_module"),
        ("pytorch_models:Mixed", ["--input", "x=float[2,three]"], "three"),
        ("pytorch_models:Noise", ["--input", "x=float32[2,3]"], "differs"),
    ],
)
def test_import_refused_source_is_one_line(pytorch: Frame, source: str, options: list[str], why: str) -> None:
    done = pytorch.run(source, "--name", "refused", *options)
    assert done.returncode == 1
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (pytorch.folder / "models" / "refused").exists()


def test_import_keras_file_gives_probabilities(tensorflow: Frame) -> None:
    model = tensorflow.load("net.keras", "net")
    assert model.batchable
    [scores] = OnnxBackend().load(model).run([model.outputs[0].name], {"picture": np.zeros((3, 16, 16, 3), np.float32)})
    assert np.allclose(scores.sum(1), 1, atol=1e-5)


def test_import_saved_model_keeps_names_and_integers(tensorflow: Frame) -> None:
    model = tensorflow.load("saved", "recurrent")
    assert {(spec.name, spec.datatype) for spec in model.inputs} == {("sequence", "FP32"), ("length", "INT32")}
    assert {(spec.name, spec.datatype) for spec in model.outputs} == {("state", "FP32"), ("left", "INT32")}
