"""Stages of a model: reading writes nothing, preparing cuts, and an invalid manifest is refused in one line."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError, StagesNotPrepared
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.stage_preparation import prepare_stages
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import sha256_of
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_manifest, encode_manifest
from tests.flink.models import FLOAT, _write, write_cut_model, write_plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cut_model(tmp_path)
    return tmp_path


def read(folder: Path) -> ModelSpec:
    return read_repository(folder, ModelDefaults(), strict=True).find("steps", "")


def prepare(folder: Path) -> ModelSpec:
    return prepare_stages(folder, ModelDefaults(), strict=True).find("steps", "")


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Returns the time of change and the bytes of each path below a folder."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


def toml(folder: Path, text: str) -> None:
    (folder / "steps" / "model.toml").write_text(text)


def change_plan(folder: Path, change: Callable[[StageManifest], StageManifest]) -> None:
    path = folder / "steps" / "1" / "plan.json"
    path.write_bytes(encode_manifest(change(decode_manifest(path.read_bytes()))))


def with_stage(index: int, **changes: Any) -> Callable[[StageManifest], StageManifest]:
    def change(plan: StageManifest) -> StageManifest:
        stages: list[StageEntry] = list(plan.stages)
        stages[index] = msgspec.structs.replace(stages[index], **changes)
        return msgspec.structs.replace(plan, stages=tuple(stages))

    return change


def test_read_stages_have_files_and_replicas(folder: Path) -> None:
    model = read(folder)
    assert [Path(stage.path).name for stage in model.stages] == ["stage-0.onnx", "stage-1.onnx", "stage-2.onnx"]
    assert all(Path(stage.path).is_absolute() and stage.sha256 == sha256_of(Path(stage.path)) for stage in model.stages)
    assert [stage.replicas for stage in model.stages] == [1, 2, 1]
    assert [[spec.name for spec in stage.inputs] for stage in model.stages] == [["x"], ["i"], ["twice", "found"]]
    assert [spec.name for spec in model.outputs] == ["y", "found"]


def test_read_takes_row_times_from_the_manifest(folder: Path) -> None:
    change_plan(folder, lambda plan: msgspec.structs.replace(with_stage(1, ms=6.0)(plan), rows=4))
    assert read(folder).stages[1].row_ms == 1.5


def test_model_toml_replicas_override_the_manifest(folder: Path) -> None:
    toml(folder, 'stages = "plan.json"\nreplicas = [3, 1, 2]\n')
    assert [stage.replicas for stage in read(folder).stages] == [3, 1, 2]


def test_read_one_stage_uses_the_whole_model(folder: Path) -> None:
    toml(folder, "stages = 1\nreplicas = [2]\n")
    model = read(folder)
    [stage] = model.stages
    assert (stage.path, stage.sha256, stage.replicas) == (model.path, model.sha256, 2)


def test_prepare_cuts_once_and_again_after_a_change(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    first, second = prepare(folder).stages
    assert {spec.name for spec in first.inputs + second.inputs} >= {"x", "i"}
    assert {spec.name for spec in second.outputs} >= {"y"}
    assert Path(first.path).parent == (folder / "steps" / "1" / "stages-2").resolve()
    written = Path(first.path).stat().st_mtime_ns
    assert prepare(folder).stages == read(folder).stages == (first, second)
    assert Path(first.path).stat().st_mtime_ns == written
    _write(folder / "steps" / "1", ["Neg x h", "Abs h y"], {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])})
    with pytest.raises(StagesNotPrepared, match="steps/1 into 2 stages"):
        read(folder)
    first, second = prepare(folder).stages
    assert [spec.name for spec in first.inputs] == ["x"]


@pytest.mark.parametrize("stages", ['"plan.json"', "1", "2", "3"])
def test_read_twice_changes_nothing_in_the_folder(folder: Path, stages: str) -> None:
    toml(folder, f"stages = {stages}\n")
    before = files_of(folder)
    read_outcomes = []
    for _ in range(2):
        try:
            read_outcomes.append(str(read(folder)))
        except StagesNotPrepared as error:
            read_outcomes.append(str(error))
    assert read_outcomes[0] == read_outcomes[1]
    assert files_of(folder) == before


def test_read_prepared_stages_changes_nothing(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    model = prepare(folder)
    before = files_of(folder)
    assert read(folder) == model
    assert files_of(folder) == before


def test_read_missing_stages_names_models_and_command(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    shutil.copytree(folder / "steps", folder / "again")
    expected = "again/1 into 2 stages, steps/1 into 2 stages; run `anabranch prepare --model-repository"
    with pytest.raises(StagesNotPrepared, match=expected) as refused:
        read(folder)
    assert [model.label for model in refused.value.models] == ["again/1", "steps/1"]
    assert "\n" not in str(refused.value)


def test_prepare_read_only_repository_names_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    toml(folder, "stages = 2\n")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="Read-only file system; run `anabranch prepare` on a machine that can write"):
        prepare(folder)


def test_prepare_blocked_folder_is_refused(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    (folder / "steps" / "1" / "stages-2").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be cut into 2 stages: cannot write"):
        prepare(folder)


def test_prepare_too_many_stages_is_refused_and_leaves_nothing(folder: Path) -> None:
    toml(folder, "stages = 9\n")
    before = set(folder.rglob("*"))
    with pytest.raises(ConfigError, match="cannot be cut into 9 stages") as refused:
        prepare(folder)
    assert "\n" not in str(refused.value)
    assert set(folder.rglob("*")) == before


def test_prepare_reports_rising_progress(folder: Path) -> None:
    toml(folder, "stages = 2\n")
    reported: list[tuple[str, float, str]] = []
    prepare_stages(folder, ModelDefaults(), lambda *progress: reported.append(progress))
    assert {model for model, _, _ in reported} == {"steps/1"}
    fractions = [done for _, done, _ in reported]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(step for _, _, step in reported)


def test_read_manifest_without_stages_key_is_ignored(folder: Path) -> None:
    toml(folder, "")
    assert read(folder).stages == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('stages = "other.json"', r"cannot read the manifest .*other\.json.*anabranch plan"),
        ("stages = -1", "stages = -1, expected 1 or more"),
        ("stages = 1.5", r"model\.toml"),
        ("replicas = [1]", "without stages"),
        ('stages = "plan.json"\nreplicas = [1, 1]', "expected 3 numbers of 1 or more"),
        ('stages = "plan.json"\nreplicas = [1, 0, 1]', "expected 3 numbers of 1 or more"),
    ],
)
def test_model_toml_invalid_stages_are_refused(folder: Path, text: str, said: str) -> None:
    toml(folder, text)
    with pytest.raises(ConfigError, match=said) as refused:
        read(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: msgspec.structs.replace(plan, model_sha256="0"), "manifest of another file"),
        (lambda plan: msgspec.structs.replace(plan, stages=()), "has no stages"),
        (with_stage(0, sha256="0"), r"stage-0\.onnx is not the file"),
        (with_stage(0, file="../1/stage-0.onnx"), "expected a file in the same folder"),
        (with_stage(1, replicas=0), "0 replicas"),
        (with_stage(1, inputs=("x",)), "other inputs or outputs"),
        (lambda plan: msgspec.structs.replace(plan, stages=plan.stages[::-1]), "nothing before stage 1"),
        (lambda plan: msgspec.structs.replace(plan, stages=plan.stages[:2]), "no stage makes the output 'y'"),
        (lambda plan: msgspec.structs.replace(plan, stages=(plan.stages[0], *plan.stages)), "made twice"),
    ],
)
def test_read_invalid_manifest_is_refused(
    folder: Path, change: Callable[[StageManifest], StageManifest], said: str
) -> None:
    change_plan(folder, change)
    with pytest.raises(ConfigError, match=said) as refused:
        read(folder)
    assert "\n" not in str(refused.value)


def test_read_cut_without_a_row_axis_is_refused(tmp_path: Path) -> None:
    write_cut_model(tmp_path, between_rows=2)
    with pytest.raises(ConfigError, match="axis 0 of twice does not count rows"):
        read(tmp_path)


def test_read_unreadable_stage_files_are_named(folder: Path) -> None:
    version = folder / "steps" / "1"
    (version / "stage-1.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match=r"stage-1\.onnx"):
        read(folder)
    (version / "stage-1.onnx").write_bytes(b"no model")
    write_plan(version, [(["x"], ["twice"], 1), (["i"], ["found"], 1), (["twice", "found"], ["y"], 1)])
    with pytest.raises(ModelLoadFailed, match=r"stage-1\.onnx"):
        read(folder)
    (version / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"plan\.json is not a stage manifest"):
        read(folder)
