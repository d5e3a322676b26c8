"""Ensembles: one request for several models."""

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from anabranch.operators.core.merging.merge_rules import MERGE_RULES
from anabranch.operators.core.merging.shards import opening, shards
from anabranch.operators.core.requests import Request
from anabranch.schemas.errors import InferenceFailed
from anabranch.schemas.model import Ensemble, ModelSpec
from anabranch.schemas.records import NO_DEADLINE_MS, OpeningRecord, ShardRecord
from anabranch.schemas.signatures import OpeningSignature, Signature, decode_signature, encode_signature
from anabranch.schemas.tensors import Tensor


def open_window(request: Request, ensemble: Ensemble, now_ms: float) -> OpeningRecord:
    """Return the OPENING of a request for an ensemble, which leaves the queue now."""
    signature = decode_signature(request.signature)
    whole = OpeningSignature(
        signature.model_name, signature.model_version, signature.inputs, signature.outputs, ensemble
    )
    opened = opening(replace(request, deadline_ms=_member_deadline_ms(request, ensemble, now_ms)))
    return replace(opened, signature=encode_signature(whole))


def member_shards(
    request: Request, ensemble: Ensemble, now_ms: float, member: int, model: ModelSpec, shard_rows: int
) -> Iterator[ShardRecord]:
    """Yield the shards of a request for one member, in that model's order of inputs."""
    signature = decode_signature(request.signature)
    given = {spec.name: (spec, data) for spec, data in zip(signature.inputs, request.tensors, strict=True)}
    inputs, tensors = zip(*(given[spec.name] for spec in model.inputs), strict=True)
    own = replace(
        request,
        signature=encode_signature(Signature(model.name, model.version, inputs, signature.outputs)),
        tensors=tensors,
        deadline_ms=_member_deadline_ms(request, ensemble, now_ms),
    )
    return shards(own, shard_rows, member)


def merge_members(ensemble: Ensemble, outputs: Sequence[tuple[int, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """Merge the outputs of members, given by index, into one tensor for each output.

    Raises:
        InferenceFailed: The members' outputs differ in datatype or shape.
    """
    merge = MERGE_RULES[ensemble.merge].merge
    member_axis = 1 if ensemble.batchable else 0
    weights = [ensemble.weights[member] for member, _ in outputs]
    merged = []
    for tensors in zip(*(tensors for _, tensors in outputs), strict=True):
        first = tensors[0]
        if any((each.datatype, each.shape) != (first.datatype, first.shape) for each in tensors):
            said = ", ".join(
                f"{ensemble.labels[member]} {each.datatype} {list(each.shape)}"
                for (member, _), each in zip(outputs, tensors, strict=True)
            )
            raise InferenceFailed(
                f"the members' outputs {first.name!r} differ and cannot be merged, found {said}: "
                "use models with equal outputs"
            )
        arrays = [tensor.to_array() for tensor in tensors]
        merged.append(Tensor.from_array(first.name, merge(arrays, weights, member_axis)))
    return tuple(merged)


def _member_deadline_ms(request: Request, ensemble: Ensemble, now_ms: float) -> int:
    if not ensemble.member_timeout_ms:
        return request.deadline_ms
    own_ms = int(now_ms) + ensemble.member_timeout_ms
    return own_ms if request.deadline_ms == NO_DEADLINE_MS else min(own_ms, request.deadline_ms)
