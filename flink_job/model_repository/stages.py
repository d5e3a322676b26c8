"""Stages of a model, by number or by manifest.

my-model/
├── model.toml          stages = "plan.json", or stages = 2
└── 1/model.onnx        the whole model
  1/plan.json           see `anabranch.schemas.stage_manifest`
  1/stage-0.onnx …
  1/stages-2/           the same, by `prepare_stages`
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.schemas.model import ModelSpec, StageSpec, TensorSpec
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_manifest

_MANIFEST = "plan.json"


@dataclass(frozen=True, slots=True)
class UnpreparedModel:
    """Model whose stages are missing or outdated.

    Attributes:
        label: Name and version: `resnet50/1`.
        path: Its file.
        stages: Number of stages to make.
    """

    label: str
    path: Path
    stages: int

    @property
    def folder(self) -> Path:
        """Folder of the stages."""
        return self.path.parent / f"stages-{self.stages}"


def read_stages(model: ModelSpec, chosen: int | str, replicas: tuple[int, ...]) -> ModelSpec | UnpreparedModel:
    """Read the stages of a model.

    Args:
        model: The whole model.
        chosen: Number of stages, or a manifest's path relative to the model's file.
        replicas: Of each stage; by default as in the manifest.

    Raises:
        ConfigError: The manifest is missing, or does not fit the model or the stages.
        ModelLoadFailed: A stage cannot be read.
    """
    subject = f"the stages of {model.name}/{model.version}"
    if chosen == 1:
        stages: tuple[StageSpec, ...] = (StageSpec(model.path, model.sha256, model.inputs, model.outputs),)
    elif isinstance(chosen, int):
        if chosen < 1:
            raise ConfigError(f"{subject}: stages = {chosen}, expected 1 or more")
        unprepared = UnpreparedModel(f"{model.name}/{model.version}", Path(model.path), chosen)
        manifest = unprepared.folder / _MANIFEST
        if not _is_cut_from(manifest, model.sha256):
            return unprepared
        stages = _read_manifest_stages(model, manifest)
    else:
        stages = _read_manifest_stages(model, Path(model.path).parent / chosen)
    if replicas:
        if len(replicas) != len(stages) or min(replicas) < 1:
            raise ConfigError(f"{subject}: replicas = {list(replicas)}, expected {len(stages)} numbers of 1 or more")
        stages = tuple(replace(stage, replicas=count) for stage, count in zip(stages, replicas, strict=True))
    _check_wiring(model, stages, subject)
    return replace(model, stages=stages)


def _is_cut_from(manifest: Path, sha256: str) -> bool:
    try:
        return decode_manifest(manifest.read_bytes()).model_sha256 == sha256
    except (OSError, msgspec.MsgspecError):
        return False


def _read_manifest_stages(model: ModelSpec, path: Path) -> tuple[StageSpec, ...]:
    manifest = _read_manifest(path)
    if manifest.model_sha256 != model.sha256:
        raise ConfigError(f"{path} is the manifest of another file than {model.path}: cut the model again")
    if not manifest.stages:
        raise ConfigError(f"{path} has no stages: cut the model again")
    return tuple(_read_stage(path.parent, entry, manifest.rows, model.session.custom_ops) for entry in manifest.stages)


def _read_manifest(path: Path) -> StageManifest:
    try:
        return decode_manifest(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}; write it by `anabranch plan`") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a stage manifest: {error}; write it by `anabranch plan`") from None


def _read_stage(folder: Path, entry: StageEntry, rows: int, custom_ops: tuple[str, ...]) -> StageSpec:
    path = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise ConfigError(f"the manifest in {folder} names {entry.file!r}, expected a file in the same folder")
    if entry.replicas < 1:
        raise ConfigError(f"the manifest in {folder} gives {entry.file} {entry.replicas} replicas, expected 1 or more")
    sha256 = sha256_of(path)
    if sha256 != entry.sha256:
        raise ConfigError(f"{path} is not the file that its manifest was written with: cut the model again")
    inputs, outputs = (_by_name(path, specs) for specs in read_signature(path, custom_ops))
    if (set(inputs), set(outputs)) != (set(entry.inputs), set(entry.outputs)):
        raise ConfigError(f"{path} has other inputs or outputs than its manifest says: cut the model again")
    return StageSpec(
        path=str(path.absolute()),
        sha256=sha256,
        inputs=tuple(inputs[name] for name in entry.inputs),
        outputs=tuple(outputs[name] for name in entry.outputs),
        replicas=entry.replicas,
        row_ms=entry.ms / max(rows, 1),
    )


def _by_name(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    named = {spec.name: spec for spec in specs}
    if len(named) < len(specs):
        raise ConfigError(f"{path} has two inputs or outputs of one name: cut the model again")
    return named


def _check_wiring(model: ModelSpec, stages: tuple[StageSpec, ...], subject: str) -> None:
    """Refuse stages with unknown inputs, or without an output of the model."""
    known = {spec.name: spec for spec in model.inputs}
    for number, stage in enumerate(stages, 1):
        for spec in stage.inputs:
            source = known.get(spec.name)
            if source is None or source.datatype != spec.datatype:
                raise ConfigError(
                    f"{subject}: nothing before stage {number} makes its input {spec.name!r}: cut the model again"
                )
        for spec in stage.outputs:
            if spec.name in known:
                raise ConfigError(f"{subject}: {spec.name!r} is made twice: cut the model again")
            known[spec.name] = spec
        fixed = [s.name for s in stage.inputs + stage.outputs if s.shape and s.shape[0] not in (None, model.fixed_rows)]
        if model.batchable and fixed:
            raise ConfigError(
                f"{subject}: axis 0 of {', '.join(fixed)} does not count rows: cut the model elsewhere, or set "
                "enabled = false under [batching]"
            )
    for spec in model.outputs:
        made = known.get(spec.name)
        if made is None or made.datatype != spec.datatype:
            raise ConfigError(f"{subject}: no stage makes the output {spec.name!r}: cut the model again")
