"""Ensembles: one request for several models, whose outputs become one.

    request --> OPENING, and for each member its SHARDs      rows of member m: m * rows, m * rows + 1, ...
    outputs of the members that are there --> one tensor for each output, element by element:

    mean, weighted_mean   computed in FP64 and rounded once: floats keep their datatype, integers and BOOL give FP64
    max                   numbers keep their datatype; NaN wins
    vote                  integers, BOOL, BYTES: what most members say; among equals, what the first of them says
    stack                 anything: a new axis behind the rows, with the members in order

Which members and rows an answer is made of is for the window to say (`request_window`).
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from msgspec.structs import replace

from anabranch.operators.core.merging.shards import opening, shards
from anabranch.operators.core.requests import Request
from anabranch.schemas.errors import InferenceFailed
from anabranch.schemas.model import Ensemble, Merge, ModelSpec
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    OpeningSignature,
    Record,
    Signature,
    decode_signature,
    encode_signature,
)
from anabranch.schemas.tensors import BYTES, FLOATS, NUMPY_DTYPES, Array, Tensor, datatype_of


def cannot_merge(merge: Merge, datatype: str) -> str | None:
    """Why outputs of a datatype cannot be merged so; None if they can."""
    if merge == "vote" and datatype in FLOATS:
        return "a vote needs labels (integers, BOOL or BYTES)"
    if merge in ("mean", "weighted_mean", "max") and datatype == BYTES:
        return f"{merge} needs numbers"
    return None


def merged_datatype(merge: Merge, datatype: str) -> str:
    """The datatype of what outputs of a datatype become."""
    return "FP64" if merge in ("mean", "weighted_mean") and datatype not in FLOATS else datatype


def open_window(request: Request, ensemble: Ensemble) -> Record:
    """What tells the aggregator of a request for an ensemble."""
    signature = decode_signature(request.signature)
    whole = OpeningSignature(
        signature.model_name, signature.model_version, signature.inputs, signature.outputs, ensemble
    )
    return replace(
        opening(request), signature=encode_signature(whole), deadline_ms=_member_deadline_ms(request, ensemble)
    )


def member_shards(
    request: Request, ensemble: Ensemble, member: int, model: ModelSpec, shard_rows: int
) -> Iterator[Record]:
    """The shards of a request for one member, whose inputs may be in another order."""
    signature = decode_signature(request.signature)
    given = {spec.name: (spec, data) for spec, data in zip(signature.inputs, request.tensors, strict=True)}
    inputs, tensors = zip(*(given[spec.name] for spec in model.inputs), strict=True)
    own = replace(
        request,
        signature=encode_signature(Signature(model.name, model.version, inputs, signature.outputs)),
        tensors=tensors,
        deadline_ms=_member_deadline_ms(request, ensemble),
    )
    for shard in shards(own, shard_rows):
        yield replace(shard, first_row=member * request.rows + shard.first_row)


def merge_members(ensemble: Ensemble, outputs: Sequence[tuple[int, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """One tensor for each output.

    Args:
        outputs: Of each member that is there: its place among all, and its outputs, the same of all, in one order.

    Raises:
        InferenceFailed: The members disagree on an output's datatype or shape.
    """
    weights = [ensemble.weights[member] for member, _ in outputs]
    merged = []
    for tensors in zip(*(tensors for _, tensors in outputs), strict=True):
        first = tensors[0]
        if any((each.datatype, each.shape) != (first.datatype, first.shape) for each in tensors):
            said = ", ".join(
                f"{ensemble.labels[member]} {each.datatype} {list(each.shape)}"
                for (member, _), each in zip(outputs, tensors, strict=True)
            )
            raise InferenceFailed(f"the members disagree on output {first.name!r}, which cannot be merged: {said}")
        arrays = [tensor.to_array() for tensor in tensors]
        array = merge_arrays(ensemble.merge, arrays, weights, member_axis=1 if ensemble.batchable else 0)
        merged.append(Tensor.from_array(first.name, array))
    return tuple(merged)


def merge_arrays(merge: Merge, arrays: Sequence[Array], weights: Sequence[float], *, member_axis: int) -> Array:
    """Merges arrays of one dtype and shape; see the module.

    Args:
        weights: One for each array, all above 0; of no effect but for `weighted_mean`.
        member_axis: The new axis of `stack`.
    """
    if merge == "stack":
        return np.stack(arrays, axis=member_axis)
    if merge == "vote":
        return _vote(arrays)
    if merge == "max":
        return np.asarray(reduce(np.maximum, arrays))
    return _mean(arrays, weights if merge == "weighted_mean" else [1.0] * len(arrays))


def _mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    total = np.zeros(arrays[0].shape, np.float64)
    # Infinity less infinity is NaN, as it should be.
    with np.errstate(over="ignore", invalid="ignore"):
        for array, weight in zip(arrays, weights, strict=True):
            total += np.multiply(array, weight, dtype=np.float64)
        total /= sum(weights)
        return total.astype(NUMPY_DTYPES[merged_datatype("mean", datatype_of(arrays[0].dtype))])


def _vote(arrays: Sequence[Array]) -> Array:
    stacked = np.stack(arrays)
    votes = np.stack([np.asarray(stacked == each).sum(axis=0) for each in stacked])
    # The first of those with most votes.
    winners = np.expand_dims(votes.argmax(axis=0), 0)
    return np.take_along_axis(stacked, winners, axis=0).reshape(arrays[0].shape)


def _member_deadline_ms(request: Request, ensemble: Ensemble) -> int:
    if not ensemble.member_timeout_ms:
        return request.deadline_ms
    own_ms = int(request.arrived_ms) + ensemble.member_timeout_ms
    return own_ms if request.deadline_ms == NO_DEADLINE_MS else min(own_ms, request.deadline_ms)
