"""Stages are read with their plan, and a plan that does not fit is refused in one line that says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import sha256_of
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_plan, encode_plan
from tests.flink.models import FLOAT, _write, write_cut_model, write_plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cut_model(tmp_path)
    return tmp_path


def read(folder: Path) -> ModelSpec:
    return read_repository(folder, ModelDefaults()).find("steps", "")


def toml(folder: Path, text: str) -> None:
    (folder / "steps" / "model.toml").write_text(text)


def change_plan(folder: Path, change: Callable[[StageManifest], StageManifest]) -> None:
    path = folder / "steps" / "1" / "plan.json"
    path.write_bytes(encode_plan(change(decode_plan(path.read_bytes()))))


def with_stage(index: int, **changes: Any) -> Callable[[StageManifest], StageManifest]:
    def change(plan: StageManifest) -> StageManifest:
        stages: list[StageEntry] = list(plan.stages)
        stages[index] = msgspec.structs.replace(stages[index], **changes)
        return msgspec.structs.replace(plan, stages=tuple(stages))

    return change


def test_stages_are_read_with_their_files_and_replicas(folder: Path) -> None:
    model = read(folder)
    assert [Path(stage.path).name for stage in model.stages] == ["stage-0.onnx", "stage-1.onnx", "stage-2.onnx"]
    assert all(Path(stage.path).is_absolute() and stage.sha256 == sha256_of(Path(stage.path)) for stage in model.stages)
    assert [stage.replicas for stage in model.stages] == [1, 2, 1]
    assert [[spec.name for spec in stage.inputs] for stage in model.stages] == [["x"], ["i"], ["twice", "found"]]
    assert [spec.name for spec in model.outputs] == ["y", "found"]


def test_what_a_row_takes_in_a_stage_is_read_off_the_plan(folder: Path) -> None:
    change_plan(folder, lambda plan: msgspec.structs.replace(with_stage(1, ms=6.0)(plan), rows=4))
    assert read(folder).stages[1].row_ms == 1.5


def test_replicas_in_the_model_toml_have_the_last_word(folder: Path) -> None:
    toml(folder, 'stages = "plan.json"\nreplicas = [3, 1, 2]\n')
    assert [stage.replicas for stage in read(folder).stages] == [3, 1, 2]


def test_one_stage_is_the_model_itself(folder: Path) -> None:
    toml(folder, "stages = 1\nreplicas = [2]\n")
    model = read(folder)
    [stage] = model.stages
    assert (stage.path, stage.sha256, stage.replicas) == (model.path, model.sha256, 2)


def test_a_number_cuts_the_model_once_and_again_where_it_has_changed(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    first, second = read(folder).stages
    assert {spec.name for spec in first.inputs + second.inputs} >= {"x", "i"}
    assert {spec.name for spec in second.outputs} >= {"y"}
    assert Path(first.path).parent == (folder / "steps" / "1" / "stages-2").resolve()
    written = Path(first.path).stat().st_mtime_ns
    assert read(folder).stages == (first, second)
    assert Path(first.path).stat().st_mtime_ns == written
    _write(folder / "steps" / "1", ["Neg x h", "Abs h y"], {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])})
    first, second = read(folder).stages
    assert [spec.name for spec in first.inputs] == ["x"]


def test_where_stages_cannot_be_written_it_is_said(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    (folder / "steps" / "1" / "stages-2").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be cut into 2 stages: cannot write"):
        read(folder)


def test_without_stages_a_plan_is_just_a_file(folder: Path) -> None:
    toml(folder, "")
    assert read(folder).stages == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('stages = "other.json"', r"cannot read the plan .*other\.json.*anabranch plan"),
        ("stages = -1", "stages = -1; it must be at least 1"),
        ("stages = 9", "cannot be cut into 9 stages"),
        ("stages = 1.5", r"model\.toml"),
        ("replicas = [1]", "there are no stages"),
        ('stages = "plan.json"\nreplicas = [1, 1]', "3 numbers from 1"),
        ('stages = "plan.json"\nreplicas = [1, 0, 1]', "3 numbers from 1"),
    ],
)
def test_a_model_toml_that_does_not_fit_is_refused(folder: Path, text: str, said: str) -> None:
    toml(folder, text)
    with pytest.raises(ConfigError, match=said) as refused:
        read(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: msgspec.structs.replace(plan, model_sha256="0"), "plan of another file"),
        (lambda plan: msgspec.structs.replace(plan, stages=()), "has no stages"),
        (with_stage(0, sha256="0"), r"stage-0\.onnx is not the file"),
        (with_stage(0, file="../1/stage-0.onnx"), "lie beside it"),
        (with_stage(1, replicas=0), "0 replicas"),
        (with_stage(1, inputs=("x",)), "other inputs or outputs"),
        (lambda plan: msgspec.structs.replace(plan, stages=plan.stages[::-1]), "nothing before stage 1"),
        (lambda plan: msgspec.structs.replace(plan, stages=plan.stages[:2]), "no stage makes the output 'y'"),
        (lambda plan: msgspec.structs.replace(plan, stages=(plan.stages[0], *plan.stages)), "made twice"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[StageManifest], StageManifest], said: str
) -> None:
    change_plan(folder, change)
    with pytest.raises(ConfigError, match=said) as refused:
        read(folder)
    assert "\n" not in str(refused.value)


def test_a_cut_where_axis_0_counts_something_else_is_refused(tmp_path: Path) -> None:
    write_cut_model(tmp_path, between_rows=2)
    with pytest.raises(ConfigError, match="axis 0 of twice does not count rows"):
        read(tmp_path)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    version = folder / "steps" / "1"
    (version / "stage-1.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match=r"stage-1\.onnx"):
        read(folder)
    (version / "stage-1.onnx").write_bytes(b"no model")
    write_plan(version, [(["x"], ["twice"], 1), (["i"], ["found"], 1), (["twice", "found"], ["y"], 1)])
    with pytest.raises(ModelLoadFailed, match=r"stage-1\.onnx"):
        read(folder)
    (version / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"plan\.json is no plan"):
        read(folder)
