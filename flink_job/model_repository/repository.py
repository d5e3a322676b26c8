"""Model repository: `NAME/VERSION/model.onnx`, with an optional `NAME/model.toml`.

    models/
    ├── magika/
    │   ├── model.toml          stages, replicas, [batching], [session], [validation]
    │   ├── 1/model.onnx
    │   └── 2/model.onnx        the newest: numbers sort by value
    ├── panel/
    │   └── model.toml          [ensemble]: see `ensembles`
    └── ocr/
        ├── model.toml          [chain]: see `chains`
        ├── detect.onnx …
        └── steps.py

Reading runs a new model to prove that its requests may share batches: see `batching_proof`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError, StagesNotPrepared
from anabranch.flink_job.model_repository.batching_proof import prove_batching
from anabranch.flink_job.model_repository.chains import ChainTable, read_chain
from anabranch.flink_job.model_repository.ensembles import EnsembleTable, read_ensemble
from anabranch.flink_job.model_repository.padding import PaddingTable, read_padding
from anabranch.flink_job.model_repository.stages import UnpreparedModel, read_stages
from anabranch.flink_job.toml_sections import read_section
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.schemas.model import Batching, Catalog, ModelSpec, SessionOptions, TensorSpec


class _Validation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Checks beyond names, datatypes and shapes.

    Attributes:
        require_finite: Refuses NaN and infinity in inputs.
    """

    require_finite: bool = False


class _ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of a `model.toml`.

    Attributes:
        stages: Number of stages, or a stage manifest; 0 for the whole model.
        replicas: Of each stage; by default as in the manifest.
    """

    stages: int | str = 0
    replicas: tuple[int, ...] = ()
    batching: dict[str, Any] = {}
    session: dict[str, Any] = {}
    validation: _Validation = _Validation()
    ensemble: EnsembleTable | None = None
    chain: ChainTable | None = None
    padding: PaddingTable | None = None


def read_repository(folder: Path, defaults: ModelDefaults) -> Catalog:
    """Read every model of a repository.

    Raises:
        ConfigError: The folder or a `model.toml` is unusable.
        StagesNotPrepared: Models must be cut: see `stage_preparation`.
        ModelLoadFailed: A model cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"no model repository at {folder}: make the folder, or name another with --model-repository")
    models: dict[str, dict[str, ModelSpec]] = {}
    unprepared: list[UnpreparedModel] = []
    ensembles = {}
    chains = {}
    # Folders with a leading dot belong to tools.
    for model_folder in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        versions = sorted(model_folder.glob("*/model.onnx"), key=lambda path: version_order(path.parent.name))
        toml = model_folder / "model.toml"
        file = _read_model_file(toml)
        if file.ensemble is not None:
            if versions or file != _ModelFile(ensemble=file.ensemble):
                raise ConfigError(f"{toml}: [ensemble] allows no other table beside it, and no version of a model")
            ensembles[toml] = file.ensemble
        elif file.chain is not None:
            if versions or file != _ModelFile(chain=file.chain, session=file.session):
                raise ConfigError(f"{toml}: [chain] allows only [session] beside it, and no version of a model")
            chains[toml] = (file.chain, with_libraries(_fill_in(toml, file, defaults)[1], toml.parent))
        elif versions:
            batching, session = _fill_in(toml, file, defaults)
            models[model_folder.name] = {}
            for path in versions:
                model = _read_model(path, file, batching, session)
                if isinstance(model, UnpreparedModel):
                    unprepared.append(model)
                else:
                    models[model_folder.name][model.version] = model
    if unprepared:
        raise StagesNotPrepared(folder, unprepared)
    if not models and not chains:
        raise ConfigError(f"no model in {folder}: put one at {folder}/NAME/VERSION/model.onnx")
    read_chains = [read_chain(toml, table, session, Catalog(models)) for toml, (table, session) in chains.items()]
    models |= {chain.name: {chain.version: chain} for chain in read_chains}
    read_ensembles = [read_ensemble(toml, table, Catalog(models)) for toml, table in ensembles.items()]
    return Catalog(models | {ensemble.name: {ensemble.version: ensemble} for ensemble in read_ensembles})


def _read_model(
    path: Path, file: _ModelFile, batching: Batching, session: SessionOptions
) -> ModelSpec | UnpreparedModel:
    session = with_libraries(session, path.parent)
    inputs, outputs = _with_ranks(path, *read_signature(path, session.custom_ops))
    fixed_rows = _fixed_rows(inputs, outputs)
    if batching.enabled:
        _check_batch_axis(path, inputs, outputs, fixed_rows)
    model = ModelSpec(
        name=path.parent.parent.name,
        version=path.parent.name,
        path=str(path.resolve()),
        sha256=sha256_of(path),
        inputs=inputs,
        outputs=outputs,
        fixed_rows=fixed_rows,
        batching=batching,
        session=session,
        require_finite=file.validation.require_finite,
    )
    if file.padding is not None:
        toml = path.parent.parent / "model.toml"
        if file.stages:
            raise ConfigError(f"{toml}: [padding] needs the whole model: remove stages, or padding")
        model = replace(model, padding=read_padding(toml, file.padding, model))
    model = prove_batching(model, path)
    return read_stages(model, file.stages, file.replicas) if file.stages else model


def _with_ranks(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Tell tensors of any rank from scalars, which ONNX Runtime does not."""
    if all(spec.shape for spec in inputs + outputs):
        return inputs, outputs
    from anabranch.partition.graph.model_file import read_model  # noqa: PLC0415 - ONNX is slow

    graph = read_model(path).graph
    unknown = {each.name for each in (*graph.input, *graph.output) if not each.type.tensor_type.HasField("shape")}
    first, second = ([replace(spec, any_rank=spec.name in unknown) for spec in side] for side in (inputs, outputs))
    return tuple(first), tuple(second)


def _fixed_rows(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> int | None:
    """Return the common fixed size of axis 0."""
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs + outputs}
    return sizes.pop() or None if len(sizes) == 1 else None


def _check_batch_axis(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], fixed_rows: int | None
) -> None:
    """Refuse `enabled = true` without a batch axis."""
    without = [spec.name for spec in inputs if not spec.shape]
    fixed = [spec.name for spec in inputs + outputs if spec.shape and spec.shape[0] not in (None, fixed_rows)]
    if without or fixed or not inputs:
        obstacle = f"axis 0 of {', '.join(fixed)} has a fixed size" if fixed else "an input has no axis 0"
        raise ConfigError(f"{path}: enabled = true under [batching], but {obstacle}: remove it, or set false")


def _read_model_file(path: Path) -> _ModelFile:
    if not path.exists():
        return _ModelFile()
    try:
        written = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return read_section(written, _ModelFile, str(path))


def _fill_in(path: Path, file: _ModelFile, defaults: ModelDefaults) -> tuple[Batching, SessionOptions]:
    batching = msgspec.structs.asdict(defaults.batching) | file.batching
    session = msgspec.structs.asdict(defaults.session) | file.session
    place = str(path)
    settings = (
        read_section(batching, Batching, place, "batching."),
        read_section(session, SessionOptions, place, "session."),
    )
    if file.replicas and not file.stages:
        raise ConfigError(f"{path}: replicas = {list(file.replicas)} without stages: set stages, or remove replicas")
    return settings


def with_libraries(session: SessionOptions, folder: Path) -> SessionOptions:
    """Return options with absolute paths of libraries in a folder."""
    libraries = tuple(
        str((folder / each).resolve()) if (folder / each).is_file() else each for each in session.custom_ops
    )
    return msgspec.structs.replace(session, custom_ops=libraries)


def version_order(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders numbers by value: 2 < 10, 1.9 < 1.10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", version) if part]
