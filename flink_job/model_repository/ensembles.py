"""Ensemble of models: the `[ensemble]` of a `model.toml`.

    [ensemble]
    members = ["a", "b@2"]
    merge = "weighted_mean"
    weights = [2, 1]
    on_failure = "rest"

Inputs and outputs are those of the members, which must agree.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.operators.core.merging.merge_rules import MERGE_RULES, cannot_merge
from anabranch.schemas.errors import UnknownModel, UnknownVersion
from anabranch.schemas.model import BatchingVerdict, Catalog, Ensemble, ModelSpec, TensorSpec

#: Version of every ensemble.
VERSION = "1"
_LEVELS = get_args(BatchingVerdict.__annotations__["level"])


class EnsembleTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models that run each request, and the merge of their outputs.

    Attributes:
        members: Models with equal inputs, `NAME` or `NAME@VERSION`; the newest version by default.
        merge: Merge rule; see the table below.
        weights: A number above 0 for each member, for `weighted_mean` only.
        outputs: Merged outputs; empty for those that all members have.
        on_failure: `fail` fails the request; `rest` answers from the other members.
        min_members: Members that must succeed with `rest`.
        member_timeout_ms: Time for each member; 0 for the deadline of the request.
    """

    members: tuple[str, ...]
    merge: str = "mean"
    weights: tuple[float, ...] = ()
    outputs: tuple[str, ...] = ()
    on_failure: Literal["fail", "rest"] = "fail"
    min_members: int = 1
    member_timeout_ms: int = 0


def read_ensemble(path: Path, table: EnsembleTable, models: Catalog) -> ModelSpec:
    """Read an ensemble as a model.

    Args:
        path: The `model.toml`.
        table: Its `[ensemble]`.
        models: Models that can be members.

    Raises:
        ConfigError: A member is unknown, or the members do not agree.
    """
    try:
        members = [_find(member, models) for member in table.members]
        _check_numbers(table)
        _check_alike(members)
        inputs = tuple(_common_input(spec, members) for spec in members[0].inputs)
        outputs = tuple(_merged_output(name, table, members) for name in table.outputs or _common_outputs(members))
    except _EnsembleError as error:
        raise ConfigError(f"{path}: ensemble.{error}") from None
    first = members[0]
    fixed_rows = [member.fixed_rows for member in members if member.fixed_rows is not None]
    return ModelSpec(
        name=path.parent.name,
        version=VERSION,
        path="",
        sha256="",
        inputs=inputs,
        outputs=outputs,
        batchable=first.batchable,
        fixed_rows=math.lcm(*fixed_rows) if fixed_rows else None,
        require_finite=any(member.require_finite for member in members),
        ensemble=Ensemble(
            members=tuple((member.name, member.version) for member in members),
            merge=table.merge,
            weights=table.weights or (1.0,) * len(members),
            needed=table.min_members if table.on_failure == "rest" else len(members),
            member_timeout_ms=table.member_timeout_ms,
            batchable=first.batchable,
        ),
        verdict=_common_verdict(members),
    )


def _common_verdict(members: Sequence[ModelSpec]) -> BatchingVerdict:
    """Return the narrowest verdict of the members."""
    narrowest = max(members, key=lambda member: _LEVELS.index(member.verdict.level))
    reason = f"as member {narrowest.name}: {narrowest.verdict.reason}"
    return BatchingVerdict(level=narrowest.verdict.level, reason=reason, deviation=narrowest.verdict.deviation)


class _EnsembleError(Exception):
    """Starts with the key that is wrong."""


def _find(member: str, models: Catalog) -> ModelSpec:
    name, _, version = member.partition("@")
    try:
        if not name:
            raise UnknownModel("a member needs a name: remove the empty one")
        left_out = models.find_left_out(name, version)
        if left_out is not None:
            raise _EnsembleError(f"members: {left_out.message}")
        return models.find(name, version)
    except (UnknownModel, UnknownVersion) as error:
        raise _EnsembleError(f"members: {error.message}") from None


def _check_numbers(table: EnsembleTable) -> None:
    count = len(table.members)
    if count < 2:
        raise _EnsembleError(f"members has {count} entries, expected 2 or more")
    rule = MERGE_RULES.get(table.merge)
    if rule is None:
        raise _EnsembleError(f"merge: unknown rule {table.merge!r}; available: {', '.join(MERGE_RULES)}")
    if rule.takes_weights and len(table.weights) != count:
        raise _EnsembleError(f"weights has {len(table.weights)} numbers for {count} members: give one for each")
    if table.weights and not rule.takes_weights:
        takers = ", ".join(name for name, each in MERGE_RULES.items() if each.takes_weights)
        raise _EnsembleError(f"weights are for {takers}, and merge is {table.merge}: remove one of them")
    if not all(0 < weight < math.inf for weight in table.weights):
        raise _EnsembleError(f"weights = {list(table.weights)}, expected numbers above 0")
    if not 1 <= table.min_members <= count:
        raise _EnsembleError(f"min_members = {table.min_members}, expected 1 to {count}")
    if table.min_members != 1 and table.on_failure == "fail":
        raise _EnsembleError('min_members needs on_failure = "rest": set it, or remove min_members')
    if table.member_timeout_ms < 0:
        raise _EnsembleError(f"member_timeout_ms = {table.member_timeout_ms}, expected 0 or more")


def _check_alike(members: Sequence[ModelSpec]) -> None:
    if len({(member.name, member.version) for member in members}) < len(members):
        raise _EnsembleError("members has a model twice: remove one")
    first = members[0]
    for member in members[1:]:
        if member.batchable != first.batchable:
            whole = first if member.batchable else member
            raise _EnsembleError(
                f"members: axis 0 counts rows in one of {first.name} and {member.name}, and not in {whole.name}: "
                f"{whole.verdict.reason}"
            )
        if {spec.name for spec in member.inputs} != {spec.name for spec in first.inputs}:
            raise _EnsembleError(
                f"members: {first.name} takes {_names(first.inputs)}, {member.name} takes {_names(member.inputs)}"
            )


def _common_input(spec: TensorSpec, members: Sequence[ModelSpec]) -> TensorSpec:
    specs = [_named(spec.name, member.inputs) for member in members]
    return TensorSpec(spec.name, spec.datatype, _common_shape("input", specs, members))


def _common_outputs(members: Sequence[ModelSpec]) -> list[str]:
    names = [
        spec.name
        for spec in members[0].outputs
        if all(spec.name in (other.name for other in member.outputs) for member in members)
    ]
    if not names:
        listed = "; ".join(f"{member.name} gives {_names(member.outputs)}" for member in members)
        raise _EnsembleError(f"members have no output in common: {listed}")
    return names


def _merged_output(name: str, table: EnsembleTable, members: Sequence[ModelSpec]) -> TensorSpec:
    for member in members:
        if name not in (spec.name for spec in member.outputs):
            raise _EnsembleError(f"outputs: {member.name} has no output {name!r}; it gives {_names(member.outputs)}")
    specs = [_named(name, member.outputs) for member in members]
    shape = _common_shape("output", specs, members)
    datatype = specs[0].datatype
    reason = cannot_merge(table.merge, datatype)
    if reason is not None:
        raise _EnsembleError(
            f"merge: {reason}, and output {name!r} is {datatype}; name the outputs to merge in outputs"
        )
    rule = MERGE_RULES[table.merge]
    if rule.adds_member_axis:
        at = 1 if members[0].batchable else 0
        # If members may be missing, the axis has any size.
        shape = (*shape[:at], len(members) if table.on_failure == "fail" else None, *shape[at:])
    return TensorSpec(name, rule.result_datatype(datatype), shape)


def _common_shape(kind: str, specs: Sequence[TensorSpec], members: Sequence[ModelSpec]) -> tuple[int | None, ...]:
    """Return the shape that all members accept; rows are open."""
    first_axis = 1 if members[0].batchable else 0
    axes = list(zip(*(spec.shape[first_axis:] for spec in specs), strict=False))
    fits = all(len(set(axis) - {None}) <= 1 for axis in axes)
    if len({(spec.datatype, len(spec.shape)) for spec in specs}) > 1 or not fits:
        listed = "; ".join(f"{member.name} has {_shown(spec)}" for member, spec in zip(members, specs, strict=True))
        raise _EnsembleError(f"members disagree on {kind} {specs[0].name!r}: {listed}")
    common = tuple(next((size for size in axis if size is not None), None) for axis in axes)
    return (None, *common) if first_axis else common


def _shown(spec: TensorSpec) -> str:
    return f"{spec.datatype} [{', '.join('any' if size is None else str(size) for size in spec.shape)}]"


def _named(name: str, specs: Iterable[TensorSpec]) -> TensorSpec:
    return next(spec for spec in specs if spec.name == name)


def _names(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "nothing"
