"""Chain of models: the `[chain]` of a `model.toml`.

    [chain]
    steps = [{ model = "detect.onnx", before = "steps.py:picture" }, { model = "read@2", replicas = 2 }]
    inputs.picture = { datatype = "UINT8", shape = [-1, -1, 3] }
    outputs.text = { datatype = "BYTES", shape = [-1] }

Functions (see `operators.core.execution.step`) are trusted; reading does not run them.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import (
    BatchingVerdict,
    Catalog,
    FunctionSpec,
    ModelSpec,
    SessionOptions,
    StageSpec,
    TensorSpec,
)
from anabranch.schemas.tensors import DATATYPES

#: Version of every chain.
VERSION = "1"


class TensorTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output of a chain.

    Attributes:
        datatype: Name of the Open Inference Protocol, such as `FP32`.
        shape: Axes; -1 for any size.
    """

    datatype: str
    shape: tuple[int, ...]


class StepTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model between two Python functions.

    Attributes:
        model: ONNX file beside the `model.toml`, or a model of the repository.
        before: `FILE.py:FUNCTION` that makes the inputs of the model.
        after: `FILE.py:FUNCTION` that makes the tensors of the next step.
        replicas: Tasks of the step.
    """

    model: str
    before: str = ""
    after: str = ""
    replicas: int = 1


class ChainTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps, each with the tensors of the one before.

    Attributes:
        steps: At least one `[chain.steps]`, in order.
        inputs: At least one `[chain.inputs.NAME]`.
        outputs: At least one `[chain.outputs.NAME]`.
    """

    steps: tuple[StepTable, ...]
    inputs: dict[str, TensorTable]
    outputs: dict[str, TensorTable]


def read_chain(path: Path, table: ChainTable, session: SessionOptions, models: Catalog) -> ModelSpec:
    """Read a chain as a model.

    Args:
        path: The `model.toml`.
        table: Its `[chain]`.
        session: For all steps.
        models: Models that steps can name.

    Raises:
        ConfigError: A model or function is unknown, or a tensor is invalid.
        ModelLoadFailed: A model cannot be read.
    """
    where = f"{path}: chain"
    if not (table.steps and table.inputs and table.outputs):
        raise ConfigError(f"{where} needs at least one step, one input and one output")
    return ModelSpec(
        name=path.parent.name,
        version=VERSION,
        path="",
        sha256="",
        inputs=_specs(table.inputs, f"{where}.inputs"),
        outputs=_specs(table.outputs, f"{where}.outputs"),
        batchable=False,
        session=session,
        stages=tuple(
            _read_step(path.parent, step, models, session, f"{where}.steps[{index}]")
            for index, step in enumerate(table.steps)
        ),
        is_chain=True,
        verdict=BatchingVerdict(level="whole", reason="requests for a chain run one by one"),
    )


def _specs(tables: Mapping[str, TensorTable], where: str) -> tuple[TensorSpec, ...]:
    for name, table in tables.items():
        if table.datatype not in DATATYPES:
            raise ConfigError(
                f"{where}.{name}: unknown datatype {table.datatype!r}; available: {', '.join(sorted(DATATYPES))}"
            )
        if any(size < -1 for size in table.shape):
            raise ConfigError(
                f"{where}.{name}: shape = {list(table.shape)}, expected sizes of 0 or more, or -1 for any size"
            )
    return tuple(
        TensorSpec(name, table.datatype, tuple(None if size == -1 else size for size in table.shape))
        for name, table in tables.items()
    )


def _read_step(folder: Path, step: StepTable, models: Catalog, session: SessionOptions, where: str) -> StageSpec:
    if step.replicas < 1:
        raise ConfigError(f"{where}: replicas = {step.replicas}, expected 1 or more")
    path, sha256, inputs, outputs = _read_model(folder, step.model, models, session, where)
    return StageSpec(
        path=path,
        sha256=sha256,
        inputs=inputs,
        outputs=outputs,
        replicas=step.replicas,
        name=step.model.removesuffix(".onnx"),
        before=read_function(folder, step.before, f"{where}: before"),
        after=read_function(folder, step.after, f"{where}: after"),
    )


def _read_model(
    folder: Path, name: str, models: Catalog, session: SessionOptions, where: str
) -> tuple[str, str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if name.endswith(".onnx"):
        path = _beside(folder, name, f"{where}: model")
        return str(path.absolute()), sha256_of(path), *read_signature(path, session.custom_ops)
    try:
        if not name:
            raise UnknownModel("a step needs a model: give its name or file")
        name, _, version = name.partition("@")
        left_out = models.find_left_out(name, version)
        if left_out is not None:
            raise ConfigError(f"{where}: {left_out.message}")
        model = models.find(name, version)
    except (UnknownModel, UnknownVersion) as error:
        raise ConfigError(f"{where}: {error.message}") from None
    return model.path, model.sha256, model.inputs, model.outputs


def read_function(folder: Path, named: str, where: str) -> FunctionSpec | None:
    """Find `FILE.py:FUNCTION` in a folder, without running it; raise ConfigError. None for an empty name."""
    if not named:
        return None
    file, _, name = named.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"{where} = {named!r}, expected file.py:function")
    path = _beside(folder, file, where)
    try:
        sha256, tree = sha256_of(path), ast.parse(path.read_bytes(), str(path))
    except ModelLoadFailed as error:
        raise ConfigError(f"{where}: {error}") from None
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{where}: {path} is not a Python file: {error}") from None
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in found:
        functions = ", ".join(sorted(found)) or "none"
        raise ConfigError(f"{where}: unknown function {name!r} of {path}; available: {functions}")
    return FunctionSpec(str(path.absolute()), sha256, name)


def _beside(folder: Path, file: str, where: str) -> Path:
    if Path(file).name != file:
        raise ConfigError(f"{where} = {file!r}, expected a file beside model.toml")
    return folder / file
