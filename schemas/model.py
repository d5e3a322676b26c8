"""What the job knows of a model before it runs it: its signature, how to batch it, how to hold its session."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import msgspec

from anabranch.schemas.errors import UnknownModel, UnknownVersion


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model declares it.

    Attributes:
        datatype: The protocol's name.
        shape: None stands for an axis of any size.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batches and shards of a model's requests.

    Attributes:
        enabled: Axis 0 of every input and output counts rows, so requests can be batched and split. By default the
            shapes of the model decide.
        shard_rows: Requests of more rows are split into shards of this many.
        max_rows: Rows of a batch at most. By default the number that costs least per row, as measured; 64 without a
            measurement.
        max_delay_ms: Time that a batch with free places waits for more requests although the task is free.
    """

    enabled: bool | None = None
    shard_rows: Annotated[int, msgspec.Meta(ge=1)] = 32
    max_rows: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_delay_ms: Annotated[float, msgspec.Meta(ge=0, le=365 * 24 * 3_600_000)] = 0.0


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX Runtime's session of a model.

    Attributes:
        intra_op_threads: Threads inside one operator; tasks times this should not exceed the cores. 0 for all cores.
        inter_op_threads: Threads for operators side by side; 0 for all cores.
        optimization: Level of ONNX Runtime's graph optimization.
        providers: Execution providers, the preferred one first.
        warm_up_rows: Rows of zeros that run once before the first request; 0 for none.
        calibrate: Measures batches of zeros when the model is loaded, once for each machine. The measurements choose
            the size of batches, and tell which requests cannot make their deadline.
    """

    intra_op_threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    inter_op_threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    providers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("CPUExecutionProvider",)
    warm_up_rows: Annotated[int, msgspec.Meta(ge=0)] = 1
    calibrate: bool = True


class Ensemble(msgspec.Struct, frozen=True, array_like=True):
    """How a model is made of others: each runs every request, and their outputs become one.

    Attributes:
        members: Name and version of each.
        merge: Name of the rule in `anabranch.operators.core.merging.merge_rules`.
        weights: One for each member.
        needed: How many must have answered; all of them where none may be missing.
        member_timeout_ms: How long they have from when the request was read; 0 for as long as the request has.
        batchable: Whether axis 0 of every input and output counts rows.
    """

    members: tuple[tuple[str, str], ...]
    merge: str
    weights: tuple[float, ...]
    needed: int
    member_timeout_ms: int = 0
    batchable: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """What answers call each member: its name, and its version where another has the same name."""
        names = [name for name, _ in self.members]
        return tuple(name if names.count(name) == 1 else f"{name}@{version}" for name, version in self.members)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A Python function of the operator of the job, who trusts it as much as the models.

    Attributes:
        path: Its file, readable at this path on every TaskManager.
        sha256: Of the file's bytes.
        name: What it is called there.
    """

    path: str
    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a model that was cut, or one step of a chain: named tensors in, named tensors out.

    Attributes:
        path: What the back-end loads, readable at this path on every TaskManager.
        sha256: Of the file's bytes.
        inputs: Inputs of the whole model, or outputs of earlier stages.
        outputs: What later stages take, or outputs of the whole model.
        replicas: How many tasks share its work.
        name: Of a step: what a person calls it.
        before: Of a step: what makes inputs of what comes; None where they come as they are.
        after: Of a step: what makes of outputs what goes on; None where they go on as they are.
        row_ms: What a row takes, by the plan's profile; 0 where there is none.
    """

    path: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    replicas: int = 1
    name: str = ""
    before: FunctionSpec | None = None
    after: FunctionSpec | None = None
    row_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model.

    Attributes:
        path: The ONNX file, readable at this path on every TaskManager; empty for an ensemble and a chain.
        sha256: Of the file's bytes.
        batchable: Whether axis 0 of every input and output counts rows.
        fixed_rows: The model's own fixed batch size; None where any number of rows can run at once.
        require_finite: Whether NaN and infinity in an input are refused.
        ensemble: What it is made of, where it has no file of its own.
        stages: In the order of their data, each an operator of its own; empty for a model that runs as a whole.
        is_chain: Whether the stages are steps: models of their own, each between Python functions.
    """

    name: str
    version: str
    path: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool = True
    fixed_rows: int | None = None
    batching: Batching = field(default_factory=Batching)
    session: SessionOptions = field(default_factory=SessionOptions)
    require_finite: bool = False
    ensemble: Ensemble | None = None
    stages: tuple[StageSpec, ...] = ()
    is_chain: bool = False

    def stage(self, index: int) -> "ModelSpec":
        """One of its stages, as the model that a back-end loads."""
        stage = self.stages[index]
        return replace(
            self,
            path=stage.path,
            sha256=stage.sha256,
            inputs=stage.inputs,
            outputs=stage.outputs,
            # Nobody asks what a stage costs: the batches of a model in stages fill up where they wait for it.
            session=msgspec.structs.replace(self.session, calibrate=False),
            stages=(),
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model that the job serves, newest version last.

    Attributes:
        models: Name -> version -> model.
    """

    models: dict[str, dict[str, ModelSpec]]

    def find(self, name: str, version: str) -> ModelSpec:
        """A model that is served; an empty name stands for the only one, an empty version for the newest.

        Raises:
            UnknownModel: No model of that name is served.
            UnknownVersion: The model is, but not in that version.
        """
        if not name and len(self.models) == 1:
            [name] = self.models
        versions = self.models.get(name)
        if not versions:
            raise UnknownModel(f"no model {name!r} is served; there is {', '.join(sorted(self.models)) or 'none'}")
        model = versions.get(version) if version else next(reversed(versions.values()))
        if model is None:
            served = ", ".join(sorted(versions))
            raise UnknownVersion(f"model {name!r} is not served in version {version!r}; there is {served}")
        return model

    def in_stages(self) -> list[ModelSpec]:
        """The models that are cut, in the order of their names and versions."""
        return [model for versions in self.models.values() for model in versions.values() if model.stages]

    def whole(self) -> list[ModelSpec]:
        """The models that are neither cut nor made of others."""
        models = [model for versions in self.models.values() for model in versions.values()]
        return [model for model in models if not model.stages and model.ensemble is None]
