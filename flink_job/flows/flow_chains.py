"""Ready steps of flows: a flow with some has a chain of its own, of one step, for which its events are requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.flink_job.model_repository.chains import (
    ChainFile,
    ChainTable,
    StepTable,
    TensorTable,
    read_chain,
    read_ready,
)
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.answers import Labeler, Pooler
from anabranch.ready_steps.factory import make_step
from anabranch.ready_steps.options import (
    FILES,
    MADE,
    AfterStep,
    BeforeStep,
    FramesStep,
    ReadyStep,
    files_of,
    keeps_rows,
)
from anabranch.schemas.errors import ModelUnavailable, UnknownModel, UnknownVersion
from anabranch.schemas.model import Catalog, ModelSpec, StageSpec, TensorSpec


def has_steps(flow: FlowTable) -> bool:
    """Tell if a flow has ready steps."""
    return bool(flow.before or flow.after)


def chain_name(flow: FlowTable) -> str:
    """Return the name of a flow's chain."""
    return f"{flow.model.partition('@')[0]}-of-{flow.source}"


def with_chains(catalog: Catalog, flows: Sequence[FlowTable], place: str) -> Catalog:
    """Add the chains of flows; raise ConfigError.

    Args:
        place: File, for messages.
    """
    added = {}
    for number, flow in enumerate(flows):
        if has_steps(flow):
            chain = _chain_of(flow, catalog, f"{place}: flow[{number}]")
            added[chain.name] = {chain.version: chain}
    return replace(catalog, models={**catalog.models, **added}) if added else catalog


@dataclass(frozen=True, slots=True)
class _FlowChain(ChainFile):
    """The chain of a flow, whose files are beside the configuration."""

    place: str = ""

    @property
    def where(self) -> str:
        return self.place

    def where_of(self, index: int) -> str:  # noqa: ARG002 - there is one
        return self.place

    def path_of(self, step: ReadyStep) -> Path | None:
        files = files_of(step)
        return self.path.parent / files[0] if files else None


def _chain_of(flow: FlowTable, catalog: Catalog, where: str) -> ModelSpec:
    name = chain_name(flow)
    if name in catalog.models:
        raise ConfigError(f"{where}.model: the flow's chain is {name!r}, as a model of the repository: rename that")
    model = _model_of(flow, catalog, where)
    folder, tables = _beside_each_other({"before": flow.before, "after": flow.after}, where)
    kinds = {"before": get_args(BeforeStep), "after": get_args(AfterStep)}
    steps: dict[str, Any] = {
        key: read_ready(table, kinds[key], f"{where}.{key}", folder) for key, table in tables.items() if table
    }
    for key, read in steps.items():
        for file in files_of(read):
            if not (folder / file).is_file():
                raise ConfigError(f"{where}.{key}: no file {folder / file}: correct the name, or put it there")
    before, after = steps.get("before"), steps.get("after")
    inputs = {spec.name: _table(spec) for spec in model.inputs}
    if before is not None:
        is_signal = isinstance(before, FramesStep)
        inputs = {before.input: TensorTable(datatype="FP32" if is_signal else "BYTES", shape=(-1,))}
    step = StepTable(model=flow.model, before=tables["before"] or "", after=tables["after"] or "")
    batching = model.batching
    if batching.enabled:
        batching = msgspec.structs.replace(batching, enabled=None)
    try:
        table = ChainTable(steps=(step,), inputs=inputs, outputs=_outputs(after, folder, model))
        chain = read_chain(_FlowChain(folder / "flow", table, batching, model.session, place=where), catalog)
    except ModelLoadFailed as error:
        raise ConfigError(f"{where}: {error.message}") from None
    if keeps_rows(before) and not chain.batchable:
        raise ConfigError(
            f"{where}.model: {flow.model!r} runs requests one by one ({model.verdict.reason or 'enabled = false'}), "
            "and takes no steps of a flow: write a chain, and name it"
        )
    return replace(chain, name=name)


def _model_of(flow: FlowTable, catalog: Catalog, where: str) -> ModelSpec:
    name, _, version = flow.model.partition("@")
    try:
        model = catalog.find(name, version)
    except (UnknownModel, UnknownVersion, ModelUnavailable) as error:
        raise ConfigError(f"{where}.model: {error.message}") from None
    if not model.path or model.stages:
        raise ConfigError(
            f"{where}.model: {flow.model!r} is an ensemble, a chain or in stages, but before and after need a whole "
            "model: name one, or write the steps into its chain"
        )
    return model


def _beside_each_other(tables: Mapping[str, dict[str, Any]], where: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Return the folder of all files, and the tables with names in it."""
    folders = set()
    named = {}
    for key, table in tables.items():
        named[key] = dict(table)
        for option, default in FILES.get(table.get("step", ""), {}).items():
            if isinstance(file := table.get(option, default), str):
                path = Path(file).absolute()
                folders.add(path.parent)
                named[key][option] = path.name
    if len(folders) > 1:
        raise ConfigError(f"{where}: before and after have files in two folders: put them into one")
    return folders.pop() if folders else Path.cwd(), named


def _table(spec: TensorSpec) -> TensorTable:
    return TensorTable(datatype=spec.datatype, shape=tuple(-1 if axis is None else axis for axis in spec.shape))


def _outputs(after: AfterStep | None, folder: Path, model: ModelSpec) -> dict[str, TensorTable]:
    if after is None:
        return {spec.name: _table(spec) for spec in model.outputs}
    stage = StageSpec(model.path, model.sha256, model.inputs, model.outputs, name=model.name)
    made = make_step(after, folder, stage)
    assert isinstance(made, Pooler | Labeler)  # noqa: S101 - by the type of `after`
    width = next(_table(spec).shape[-1:] for spec in model.outputs if spec.name == made.tensor)
    vectors = ("embedding", "scores")
    return {
        name: TensorTable(datatype=datatype, shape=(-1, *width) if name in vectors else (-1,))
        for name, datatype in MADE[type(after)].items()
    }
