"""Configuration of models, and their catalog."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import msgspec

from anabranch.schemas.errors import ModelUnavailable, UnknownModel, UnknownVersion
from anabranch.schemas.limits import MAX_RUN_MS, MAX_WAIT_MS
from anabranch.schemas.padding import Padding


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output; None in the shape is any size."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    any_rank: bool = False


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batches and shards of a model's requests.

    Attributes:
        enabled: Axis 0 of every input and output counts rows. By default the shapes of the model decide.
        shard_rows: Requests of more rows become shards of this many, or of 100 ms.
        max_rows: Rows of a batch at most. By default the measured optimum; 64 without a measurement.
        max_delay_ms: Time for which an idle task waits for a full batch.
        tolerance: Relative difference that other company may make to a row; ten times as much for FP16.
        trust: Lets strangers share batches without a trial.
    """

    enabled: bool | None = None
    shard_rows: Annotated[int, msgspec.Meta(ge=1)] = 32
    max_rows: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_delay_ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_MS)] = 0.0
    tolerance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-3
    trust: bool = False


class BatchingVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Company of a row, found by a trial.

    Attributes:
        deviation: Largest relative difference.
        most_rows: Largest batch; 0 without a trial.
    """

    level: Literal["strangers", "within request", "whole"] = "strangers"
    reason: str = "not tried"
    deviation: float | None = None
    most_rows: int = 0
    pads: bool = False


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX Runtime's session of a model.

    Attributes:
        intra_op_threads: Threads inside one operator; tasks times this should not exceed the cores. 0 for all cores.
        inter_op_threads: Threads for operators side by side; 0 for all cores.
        optimization: Level of ONNX Runtime's graph optimization.
        providers: Execution providers, preferred first.
        warm_up_rows: Rows of zeros that run before the first request.
        max_run_ms: Time limit of a run; 0 for none.
        max_crashes: Crashes before refusal; 0 for no limit.
        max_request_bytes: Largest request; 0 for `kafka.max_message_bytes`.
        max_request_elements: Most elements; 0 for no limit.
        calibrate: Measures batches when the model is loaded, once for each machine, to choose their size and to
            predict missed deadlines.
        custom_ops: Libraries of custom operators: paths beside the model, or `PACKAGE:FUNCTION` that returns one.
    """

    intra_op_threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    inter_op_threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    providers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("CPUExecutionProvider",)
    warm_up_rows: Annotated[int, msgspec.Meta(ge=0)] = 1
    max_run_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_RUN_MS)] = 60_000
    max_crashes: Annotated[int, msgspec.Meta(ge=0)] = 3
    max_request_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_request_elements: Annotated[int, msgspec.Meta(ge=0)] = 0
    calibrate: bool = True
    custom_ops: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()


class Ensemble(msgspec.Struct, frozen=True, array_like=True):
    """A model that merges the outputs of its members.

    Attributes:
        members: Name and version of each.
        needed: Number of members that must answer.
        member_timeout_ms: From when the request leaves the queue; 0 for its deadline.
        batchable: True if axis 0 counts rows.
    """

    members: tuple[tuple[str, str], ...]
    merge: str
    weights: tuple[float, ...]
    needed: int
    member_timeout_ms: int = 0
    batchable: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of members in answers, `name@version` if repeated."""
        names = [name for name, _ in self.members]
        return tuple(name if names.count(name) == 1 else f"{name}@{version}" for name, version in self.members)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A Python function of a step, trusted like the models.

    Attributes:
        path: File, on every TaskManager.
        name: In the file.
        ready: Its options.
    """

    path: str
    sha256: str
    name: str
    ready: msgspec.Struct | None = None


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage of a model that was cut, or a step of a chain.

    Attributes:
        path: Model, on every TaskManager.
        replicas: Number of tasks.
        before: Prepares inputs of a step.
        after: Processes outputs of a step.
        row_ms: Profiled time; 0 if unknown.
        padding: Of a run.
        company: Of a row.
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
    padding: Padding | None = None
    company: Literal["similar", "equal", "alone"] = "alone"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model.

    Attributes:
        path: ONNX file, on every TaskManager; empty without one.
        sha256: Of the file, in hex.
        batchable: True if axis 0 counts rows.
        fixed_rows: The model's own batch size.
        require_finite: True to refuse NaN and infinity.
        is_chain: True if stages are steps.
        is_capped: True if a trial limits `batching.max_rows`.
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
    padding: Padding | None = None
    verdict: BatchingVerdict = field(default_factory=BatchingVerdict)
    is_capped: bool = False

    @property
    def is_indivisible(self) -> bool:
        """True if a request's rows run together and alone."""
        return self.batchable and self.fixed_rows is None and self.verdict.level != "strangers"

    def stage(self, index: int) -> "ModelSpec":
        """Return a stage as a model."""
        stage = self.stages[index]
        return replace(
            self,
            path=stage.path,
            sha256=stage.sha256,
            inputs=stage.inputs,
            outputs=stage.outputs,
            session=msgspec.structs.replace(self.session, calibrate=False),
            padding=stage.padding,
            stages=(),
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that cannot be served; an empty version means all."""

    name: str
    version: str
    reason: str

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}" if self.version else self.name

    @property
    def message(self) -> str:
        """One line for people."""
        return f"model {self.label} is not served: {self.reason}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """Models by name and version, newest last; `ignored` folders are not versions."""

    models: dict[str, dict[str, ModelSpec]]
    left_out: tuple[LeftOut, ...] = ()
    ignored: tuple[str, ...] = ()

    def find(self, name: str, version: str) -> ModelSpec:
        """Find a model; empty means the only, or the newest that is served.

        Raises:
            UnknownModel, UnknownVersion, ModelUnavailable: None is served.
        """
        if not name and len(names := {*self.models, *(each.name for each in self.left_out)}) == 1:
            [name] = names
        versions = self.models.get(name)
        if versions:
            model = versions.get(version) if version else next(reversed(versions.values()))
            if model is not None:
                return model
        left_out = self.find_left_out(name, version)
        if left_out is not None:
            raise ModelUnavailable(f"{left_out.message}; run `anabranch upgrade` when it is mended")
        if not versions:
            raise UnknownModel(f"unknown model {name!r}; available: {', '.join(sorted(self.models)) or 'none'}")
        available = ", ".join(sorted(versions))
        raise UnknownVersion(f"unknown version {version!r} of model {name!r}; available: {available}")

    def find_left_out(self, name: str, version: str) -> LeftOut | None:
        """Return the reason against an unserved model."""
        versions = self.models.get(name, {})
        if version in versions or (versions and not version):
            return None
        found = (each for each in reversed(self.left_out) if each.name == name)
        return next((each for each in found if not version or each.version in ("", version)), None)

    def without(self, left_out: Sequence[LeftOut]) -> "Catalog":
        """Leave models out, and their ensembles."""
        names = {(each.name, each.version) for each in left_out}
        members = [
            LeftOut(model.name, model.version, f"its member {name}/{version} is not served")
            for model in self._all()
            for name, version in (model.ensemble.members if model.ensemble else ())
            if (name, version) in names and (model.name, model.version) not in names
        ]
        gone = {(each.name, each.version): each for each in (*members, *left_out)}
        models = {
            name: {version: model for version, model in versions.items() if (name, version) not in gone}
            for name, versions in self.models.items()
        }
        kept = {name: versions for name, versions in models.items() if versions}
        return replace(self, models=kept, left_out=(*self.left_out, *gone.values()))

    def in_stages(self) -> list[ModelSpec]:
        """List models in stages."""
        return [model for model in self._all() if model.stages]

    def whole(self) -> list[ModelSpec]:
        """List models without stages and members."""
        return [model for model in self._all() if not model.stages and model.ensemble is None]

    def _all(self) -> list[ModelSpec]:
        return [model for versions in self.models.values() for model in versions.values()]
