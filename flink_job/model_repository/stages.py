"""The stages of a model, as `model.toml` asks for them: so many, or those of a plan, whose files lie beside it.

my-model/
├── model.toml          stages = "plan.json"
└── 1/model.onnx        what was cut, and what requests are checked against
  1/plan.json           see `anabranch.schemas.stage_manifest`
  1/stage-0.onnx …      what the stages load, on whichever TaskManager they are
"""

from dataclasses import replace
from pathlib import Path

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.stage_cutting import cut
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.schemas.model import ModelSpec, StageSpec, TensorSpec
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, decode_plan


def read_stages(model: ModelSpec, chosen: int | str, replicas: tuple[int, ...]) -> ModelSpec:
    """A model with its stages.

    Args:
        chosen: The file of a plan, in the folder of the model's version; or how many stages to cut the model into,
            where 1 leaves it whole.
        replicas: For each stage, where the plan shall not decide.

    Raises:
        ConfigError: There is no such plan, or it does not fit the model or its own files; the model cannot be cut so.
        ModelLoadFailed: A stage cannot be read.
    """
    where = f"the stages of {model.name}/{model.version}"
    if chosen == 1:
        stages: tuple[StageSpec, ...] = (StageSpec(model.path, model.sha256, model.inputs, model.outputs),)
    elif isinstance(chosen, int):
        if chosen < 1:
            raise ConfigError(f"{where}: stages = {chosen}; it must be at least 1")
        stages = _planned(model, cut(Path(model.path), model.sha256, chosen))
    else:
        stages = _planned(model, Path(model.path).parent / chosen)
    if replicas:
        if len(replicas) != len(stages) or min(replicas) < 1:
            raise ConfigError(f"{where}: replicas must be {len(stages)} numbers from 1, and is {list(replicas)}")
        stages = tuple(replace(stage, replicas=count) for stage, count in zip(stages, replicas, strict=True))
    _check_wiring(model, stages, where)
    return replace(model, stages=stages)


def _planned(model: ModelSpec, path: Path) -> tuple[StageSpec, ...]:
    plan = _read_plan(path)
    if plan.model_sha256 != model.sha256:
        raise ConfigError(f"{path} is the plan of another file than {model.path}: cut the model again")
    if not plan.stages:
        raise ConfigError(f"{path} has no stages")
    return tuple(_read_stage(path.parent, stage, plan.rows) for stage in plan.stages)


def _read_plan(path: Path) -> StageManifest:
    try:
        return decode_plan(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the plan {path}: {error.strerror}; make one with `anabranch plan`") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no plan: {error}") from None


def _read_stage(folder: Path, planned: StageEntry, rows: int) -> StageSpec:
    path = folder / planned.file
    if Path(planned.file).name != planned.file:
        raise ConfigError(f"the plan in {folder} names {planned.file!r}: the files of its stages lie beside it")
    if planned.replicas < 1:
        raise ConfigError(f"the plan in {folder} gives {planned.file} {planned.replicas} replicas; at least 1")
    sha256 = sha256_of(path)
    if sha256 != planned.sha256:
        raise ConfigError(f"{path} is not the file that the plan beside it was made with: cut the model again")
    inputs, outputs = (_in_order(path, specs) for specs in read_signature(path))
    if (set(inputs), set(outputs)) != (set(planned.inputs), set(planned.outputs)):
        raise ConfigError(f"{path} has other inputs or outputs than its plan says: cut the model again")
    return StageSpec(
        path=str(path.resolve()),
        sha256=sha256,
        inputs=tuple(inputs[name] for name in planned.inputs),
        outputs=tuple(outputs[name] for name in planned.outputs),
        replicas=planned.replicas,
        row_ms=planned.ms / max(rows, 1),
    )


def _in_order(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    named = {spec.name: spec for spec in specs}
    if len(named) < len(specs):
        raise ConfigError(f"{path} has two inputs or outputs of one name")
    return named


def _check_wiring(model: ModelSpec, stages: tuple[StageSpec, ...], where: str) -> None:
    """Refuses stages of which one needs what is not there, or that do not make the model's outputs."""
    there = {spec.name: spec for spec in model.inputs}
    for number, stage in enumerate(stages, 1):
        for spec in stage.inputs:
            source = there.get(spec.name)
            if source is None or source.datatype != spec.datatype:
                raise ConfigError(f"{where}: nothing before stage {number} makes its input {spec.name!r}")
        for spec in stage.outputs:
            if spec.name in there:
                raise ConfigError(f"{where}: {spec.name!r} is made twice")
            there[spec.name] = spec
        fixed = [s.name for s in stage.inputs + stage.outputs if s.shape and s.shape[0] not in (None, model.fixed_rows)]
        if model.batchable and fixed:
            raise ConfigError(
                f"{where}: axis 0 of {', '.join(fixed)} does not count rows; cut the model elsewhere, or set "
                "enabled = false under [batching]"
            )
    for spec in model.outputs:
        made = there.get(spec.name)
        if made is None or made.datatype != spec.datatype:
            raise ConfigError(f"{where}: no stage makes the output {spec.name!r}")
