"""Model repository: `NAME/VERSION/model.onnx`, with an optional `NAME/model.toml`.

    models/
    ├── magika/
    │   ├── model.toml          stages, replicas, [batching], [session], [validation]
    │   ├── 1/model.onnx
    │   └── 2/model.onnx        the newest; other folders than numbers are ignored
    ├── panel/
    │   └── model.toml          [ensemble]: see `ensembles`
    └── ocr/
        ├── model.toml          [chain]: see `chains`
        ├── detect.onnx …
        └── steps.py

Reading runs a new model to prove that its requests may share batches: see `batching_proof`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError, StagesNotPrepared
from anabranch.flink_job.model_repository import chains, ensembles
from anabranch.flink_job.model_repository.batching_proof import prove_batching
from anabranch.flink_job.model_repository.chains import ChainFile, ChainTable, read_chain
from anabranch.flink_job.model_repository.ensembles import EnsembleTable, read_ensemble
from anabranch.flink_job.model_repository.padding import PaddingTable, read_padding
from anabranch.flink_job.model_repository.stages import UnpreparedModel, read_stages
from anabranch.flink_job.toml_sections import read_section
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.schemas.errors import AnabranchError, ModelUnavailable
from anabranch.schemas.model import Batching, Catalog, LeftOut, ModelSpec, SessionOptions, TensorSpec

_MODEL = "model.onnx"
#: Triton's rule, too.
_VERSION = re.compile("0|[1-9][0-9]{0,17}")


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


class _Reading:
    """One reading of a repository: collects models, and the reasons against others."""

    def __init__(self, defaults: ModelDefaults, given_up: Mapping[str, AnabranchError], *, strict: bool) -> None:
        self._defaults = defaults
        self._given_up = given_up
        self._strict = strict
        self.models: dict[str, dict[str, ModelSpec]] = {}
        self.left_out: list[LeftOut] = []
        self.ignored: list[str] = []
        self.unprepared: list[UnpreparedModel] = []
        self.chains: list[ChainFile] = []
        self.ensembles: dict[Path, EnsembleTable] = {}

    @property
    def catalog(self) -> Catalog:
        """Models so far."""
        return Catalog(self.models, tuple(self.left_out), tuple(self.ignored))

    @contextmanager
    def leaving_out(self, name: str, version: str = "") -> Iterator[None]:
        """Note a model that cannot be served, and its reason."""
        try:
            yield
        except (ConfigError, ModelLoadFailed, ModelUnavailable) as error:
            if self._strict:
                raise
            self.left_out.append(LeftOut(name, version, error.message))

    def add(self, name: str, versions: Mapping[str, ModelSpec]) -> None:
        """Add the versions of a model that can be served."""
        if versions:
            self.models[name] = dict(versions)

    def read_folder(self, folder: Path) -> None:
        """Read the versions of a model, or note its chain or ensemble."""
        versions = self._versions(folder)
        toml = folder / "model.toml"
        file = _read_model_file(toml)
        if file.ensemble is not None:
            if versions or file != _ModelFile(ensemble=file.ensemble):
                raise ConfigError(f"{toml}: [ensemble] allows no other table beside it, and no version of a model")
            self.ensembles[toml] = file.ensemble
        elif file.chain is not None:
            own = _ModelFile(chain=file.chain, session=file.session, batching=file.batching)
            if file.chain.has_ready_steps:
                own = msgspec.structs.replace(own, padding=file.padding)
            if versions or file != own:
                raise ConfigError(
                    f"{toml}: [chain] allows only [session] and [batching] beside it, and with ready steps [padding], "
                    "but no version of a model"
                )
            batching, session = _fill_in(toml, file, self._defaults)
            session = with_libraries(session, folder)
            self.chains.append(ChainFile(toml, file.chain, batching, session, file.padding))
        elif versions:
            batching, session = _fill_in(toml, file, self._defaults)
            read: dict[str, ModelSpec] = {}
            for path in versions:
                with self.leaving_out(folder.name, path.parent.name):
                    model = _read_model(path, file, batching, session)
                    if not isinstance(model, UnpreparedModel):
                        read[model.version] = model
                    elif model.label in self._given_up:
                        raise self._given_up[model.label]
                    else:
                        self.unprepared.append(model)
            self.add(folder.name, read)
        else:
            self.ignored.append(f"{folder.name} (no {folder.name}/NUMBER/model.onnx)")

    def _versions(self, folder: Path) -> list[Path]:
        versions = version_files(folder)
        others = sorted(path.parent.name for path in folder.glob(f"[!.]*/{_MODEL}") if path not in versions)
        self.ignored += [f"{folder.name}/{name} (not a number)" for name in others]
        numbers = {path.name for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name)}
        empty = sorted(numbers - {path.parent.name for path in versions})
        self.ignored += [f"{folder.name}/{name} (no {_MODEL})" for name in empty]
        return versions


def version_files(folder: Path) -> list[Path]:
    """Return the ONNX files of a model's versions, the newest last."""
    found = (path for path in folder.glob(f"*/{_MODEL}") if _VERSION.fullmatch(path.parent.name))
    return sorted(found, key=lambda path: int(path.parent.name))


def read_repository(
    folder: Path, defaults: ModelDefaults, given_up: Mapping[str, AnabranchError] | None = None, *, strict: bool = False
) -> Catalog:
    """Read every model of a repository, and leave out those that cannot be served.

    Args:
        given_up: Errors of models that cannot be cut, by `NAME/VERSION`.
        strict: Refuses a repository with such models.

    Raises:
        ConfigError: The folder is unusable, or no model can be served.
        StagesNotPrepared: Models must be cut: see `stage_preparation`.
        ModelLoadFailed: A model cannot be read, with `strict`.
    """
    if not folder.is_dir():
        raise ConfigError(f"no model repository at {folder}: make the folder, or name another with --model-repository")
    reading = _Reading(defaults, given_up or {}, strict=strict)
    # Folders with a leading dot belong to tools.
    for model_folder in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        with reading.leaving_out(model_folder.name):
            reading.read_folder(model_folder)
    if reading.unprepared:
        raise StagesNotPrepared(folder, reading.unprepared)
    whole = reading.catalog
    for chain in reading.chains:
        with reading.leaving_out(chain.path.parent.name, chains.VERSION):
            model = read_chain(chain, whole)
            reading.add(model.name, {model.version: model})
    whole = reading.catalog
    for toml, ensemble in reading.ensembles.items():
        with reading.leaving_out(toml.parent.name, ensembles.VERSION):
            model = read_ensemble(toml, ensemble, whole)
            reading.add(model.name, {model.version: model})
    if not reading.models:
        reasons = "; ".join(f"{each.label}: {each.reason}" for each in reading.left_out)
        raise ConfigError(
            f"no model in {folder} can be served: {reasons}"
            if reasons
            else f"no model in {folder}: put one at {folder}/NAME/NUMBER/{_MODEL}"
        )
    return reading.catalog


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
        path=str(path.absolute()),
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
    from anabranch.partition.errors import UnreadableModel  # noqa: PLC0415 - ONNX is slow
    from anabranch.partition.graph.model_file import read_model  # noqa: PLC0415 - ONNX is slow

    try:
        graph = read_model(path).graph
    except UnreadableModel as error:
        raise ModelLoadFailed(str(error)) from None
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
        str((folder / each).absolute()) if (folder / each).is_file() else each for each in session.custom_ops
    )
    return msgspec.structs.replace(session, custom_ops=libraries)
