"""Chain of models: the `[chain]` of a `model.toml`.

    [chain]
    steps = [{ model = "detect.onnx", before = "steps.py:picture" }, { model = "read@2", replicas = 2 }]
    inputs.picture = { datatype = "UINT8", shape = [-1, -1, 3] }
    outputs.text = { datatype = "BYTES", shape = [-1] }

Functions (see `operators.core.execution.step`) are trusted; reading does not run them. A table in place of a function
is a ready step: see `ready_steps.options`. Requests of a chain of ready steps share batches; with `[batching] trust`,
so do those of other chains.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.batching_proof import TRUSTED, prove_batching
from anabranch.flink_job.model_repository.padding import PaddingTable, read_padding
from anabranch.flink_job.toml_sections import read_section
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import read_signature, sha256_of
from anabranch.ready_steps.answers import Labeler, Pooler
from anabranch.ready_steps.factory import make_step
from anabranch.ready_steps.options import MADE, AfterStep, BeforeStep, ReadyStep, files_of, keeps_rows, name_of
from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import (
    Batching,
    BatchingVerdict,
    Catalog,
    FunctionSpec,
    ModelSpec,
    SessionOptions,
    StageSpec,
    TensorSpec,
)
from anabranch.schemas.padding import Padding
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
    """A model between two Python functions or ready steps.

    Attributes:
        model: ONNX file beside the `model.toml`, or a model of the repository.
        before: `FILE.py:FUNCTION` that makes the inputs of the model, or the table of a ready step.
        after: `FILE.py:FUNCTION` that makes the tensors of the next step, or the table of a ready step.
        replicas: Tasks of the step.
    """

    model: str
    before: str | dict[str, Any] = ""
    after: str | dict[str, Any] = ""
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

    @property
    def has_ready_steps(self) -> bool:
        """True if a step is a table."""
        return any(isinstance(each, dict) for step in self.steps for each in (step.before, step.after))


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A `model.toml` with a `[chain]`.

    Attributes:
        batching: With the defaults filled in, as `session`.
    """

    path: Path
    table: ChainTable
    batching: Batching
    session: SessionOptions
    padding: PaddingTable | None = None

    @property
    def where(self) -> str:
        """Place of the chain, for messages."""
        return f"{self.path}: chain"

    def where_of(self, index: int) -> str:
        """Return the place of a step."""
        return f"{self.where}.steps[{index}]"

    def path_of(self, step: ReadyStep) -> Path | None:  # noqa: ARG002 - of chains elsewhere
        """Return a file in the folder of a ready step's files; None if it needs no folder."""
        return self.path


def read_chain(file: ChainFile, models: Catalog) -> ModelSpec:
    """Read a chain as a model.

    Args:
        models: Models that steps can name.

    Raises:
        ConfigError: A model or function is unknown, or a tensor is invalid.
        ModelLoadFailed: A model cannot be read, or a ready step cannot be made.
    """
    table, where, path = file.table, file.where, file.path
    if not (table.steps and table.inputs and table.outputs):
        raise ConfigError(f"{where} needs at least one step, one input and one output")
    steps = [_StepReader(file, index, models) for index in range(len(table.steps))]
    stages = tuple(step.read() for step in steps)
    _check_ends(file, steps)
    obstacle = _obstacle(table, steps)
    if file.batching.enabled and obstacle:
        raise ConfigError(f"{path}: enabled = true under [batching], but {obstacle}: remove it")
    by_row = not obstacle and file.batching.enabled is not False
    limits = [step.most_rows for step in steps if step.most_rows]
    batching, is_capped = file.batching, by_row and bool(limits)
    if is_capped:
        batching = msgspec.structs.replace(file.batching, max_rows=min(limits))
    verdict = BatchingVerdict(level="whole", reason="requests for a chain run one by one")
    return ModelSpec(
        name=path.parent.name,
        version=VERSION,
        path="",
        sha256="",
        inputs=_specs(table.inputs, f"{where}.inputs"),
        outputs=_specs(table.outputs, f"{where}.outputs"),
        batchable=by_row,
        batching=batching if by_row else Batching(),
        session=file.session,
        stages=stages,
        is_chain=True,
        verdict=BatchingVerdict(reason="; ".join(step.verdict for step in steps)) if by_row else verdict,
        is_capped=is_capped and file.batching.max_rows is None,
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


class _StepReader:
    """Reads one step."""

    def __init__(self, file: ChainFile, index: int, models: Catalog) -> None:
        self._file = file
        self._folder = file.path.parent
        self._models = models
        self.where = file.where_of(index)
        self.table = file.table.steps[index]
        self.before = self._ready(self.table.before, get_args(BeforeStep), "before")
        self.after = self._ready(self.table.after, get_args(AfterStep), "after")
        self.verdict = f"{self.table.model.removesuffix('.onnx')}: {TRUSTED}"
        self.most_rows = 0
        self._is_shared = False

    def _ready(self, written: str | dict[str, Any], kinds: Sequence[type[ReadyStep]], key: str) -> ReadyStep | None:
        return None if isinstance(written, str) else read_ready(written, kinds, f"{self.where}.{key}", self._folder)

    @property
    def by_row(self) -> bool:
        """True if each row of the step's tensors gives one row; of functions only their author knows."""
        if self.has_functions or (self.before is None and self.after is None):
            return self._file.batching.trust and keeps_rows(self.before)
        return keeps_rows(self.before) and (self.before is not None or self._is_shared)

    @property
    def has_functions(self) -> bool:
        """True if the step calls Python functions of the user."""
        return any(isinstance(each, str) and each for each in (self.table.before, self.table.after))

    def read(self) -> StageSpec:
        """Read the step."""
        if self.table.replicas < 1:
            raise ConfigError(f"{self.where}: replicas = {self.table.replicas}, expected 1 or more")
        if self.before is not None and keeps_rows(self.before) and not self.table.after:
            raise ConfigError(
                f"{self.where}: {name_of(self.before)!r} may run the model several times: add `after`, which gets all "
                "runs"
            )
        model = self._model()
        stage = StageSpec(
            path=model.path,
            sha256=model.sha256,
            inputs=model.inputs,
            outputs=model.outputs,
            replicas=self.table.replicas,
            name=self.table.model.removesuffix(".onnx"),
            before=self._function(self.before, self.table.before, "before"),
            after=self._function(self.after, self.table.after, "after"),
        )
        if self.before is None and self.after is None:
            return stage
        outputs = model.outputs
        if self.after is not None:
            after = make_step(self.after, self._folder, stage)
            assert isinstance(after, Pooler | Labeler)  # noqa: S101 - by the types of `after`
            outputs = tuple(spec for spec in outputs if spec.name == after.tensor)
        stage = replace(stage, outputs=outputs)
        if keeps_rows(self.before):
            stage = self._with_company(stage, replace(model, outputs=outputs))
        if self.before is not None:
            make_step(self.before, self._folder, stage)
        return stage

    def _with_company(self, stage: StageSpec, model: ModelSpec) -> StageSpec:
        """Let rows share runs of the model as far as its trial allows."""
        if model.padding is not None:
            kept = {spec.name for spec in stage.outputs}
            cut = tuple(each for each in model.padding.outputs if each[0] in kept)
            model = replace(model, padding=replace(model.padding, outputs=cut))
        if self.table.model.endswith(".onnx"):
            model = prove_batching(model, Path(model.path))
        rows = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else None
        if rows not in (None, 1):
            raise ConfigError(
                f"{self.where}: {stage.name} has a fixed batch size of {rows}: export it with a free batch axis"
            )
        reason = model.verdict.reason
        self._is_shared = model.verdict.level == "strangers" and rows is None
        if not self._is_shared:
            self.verdict = f"{stage.name}: rows run alone: {reason}"
            return stage
        self.verdict, self.most_rows = f"{stage.name}: {reason}", model.batching.max_rows or 0
        return replace(stage, padding=model.padding, company="equal" if model.padding is None else "similar")

    def _function(self, ready: ReadyStep | None, named: str | dict[str, Any], key: str) -> FunctionSpec | None:
        if ready is None:
            return read_function(self._folder, str(named), f"{self.where}: {key}")
        path = self._file.path_of(ready)
        if path is None:
            return FunctionSpec("", "", name_of(ready), ready)
        return FunctionSpec(str(path.absolute()), sha256_of(path), name_of(ready), ready)

    def _model(self) -> ModelSpec:
        name, file = self.table.model, self._file
        if name.endswith(".onnx"):
            path = _beside(self._folder, name, f"{self.where}: model")
            sha256 = sha256_of(path)
            inputs, outputs = read_signature(path, file.session.custom_ops)
            model = ModelSpec(
                name=self._folder.name,
                version=name,
                path=str(path.absolute()),
                sha256=sha256,
                inputs=inputs,
                outputs=outputs,
                batching=file.batching,
                session=file.session,
            )
            return replace(model, padding=self._padding(model))
        try:
            if not name:
                raise UnknownModel("a step needs a model: give its name or file")
            name, _, version = name.partition("@")
            left_out = self._models.find_left_out(name, version)
            if left_out is not None:
                raise ConfigError(f"{self.where}: {left_out.message}")
            return self._models.find(name, version)
        except (UnknownModel, UnknownVersion) as error:
            raise ConfigError(f"{self.where}: {error.message}") from None

    def _padding(self, model: ModelSpec) -> Padding | None:
        table = self._file.padding
        # The other steps have models of other inputs.
        if table is None or (
            len(self._file.table.steps) > 1 and not table.inputs.keys() <= {s.name for s in model.inputs}
        ):
            return None
        return read_padding(self._file.path, table, model)


def read_ready(written: dict[str, Any], kinds: Sequence[type[ReadyStep]], where: str, folder: Path) -> ReadyStep:
    """Read the table of a ready step with files in a folder, or raise ConfigError."""
    known = {name_of(kind): kind for kind in kinds}
    kind = known.get(written.get("step", ""))
    if kind is None:
        raise ConfigError(f"{where}: unknown step {written.get('step', '')!r}; available: {', '.join(known)}")
    step = read_section(written, kind, where)
    for file in files_of(step):
        _beside(folder, file, f"{where}: file")
    return step


def _obstacle(table: ChainTable, steps: Sequence[_StepReader]) -> str | None:
    """Return the reason for which axis 0 does not count rows."""
    for step, written in zip(steps, table.steps, strict=True):
        if not step.by_row:
            unless = ", unless trust = true says so of its functions" if step.has_functions else ""
            return f"step {written.model!r} does not make one row of each{unless}"
    for name, tensor in (table.inputs | table.outputs).items():
        if tensor.shape[:1] != (-1,):
            return f"axis 0 of {name!r} is not -1"
    return None


def _check_ends(file: ChainFile, steps: Sequence[_StepReader]) -> None:
    """Compare the tensors of the chain with those that ready steps take and make."""
    table, where = file.table, file.where
    first, last = steps[0].before, steps[-1].after
    if first is not None and getattr(first, "input", None) not in table.inputs:
        raise ConfigError(
            f"{where}.inputs: {name_of(first)!r} takes {getattr(first, 'input', '')!r}; available: "
            f"{', '.join(table.inputs)}"
        )
    if last is None:
        return
    made = MADE[type(last)]
    there = ", ".join(f"{name} of {datatype}" for name, datatype in made.items())
    for name, tensor in table.outputs.items():
        if made.get(name) != tensor.datatype:
            raise ConfigError(
                f"{where}.outputs: {name_of(last)!r} makes no {name!r} of {tensor.datatype}; available: {there}"
            )


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
