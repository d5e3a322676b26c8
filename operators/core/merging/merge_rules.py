"""Rules that merge the outputs of an ensemble's members, element by element."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from anabranch.schemas.tensors import BYTES, DATATYPES, FLOATS, NUMPY_DTYPES, Array, datatype_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRule:
    """A rule.

    Attributes:
        summary: One sentence for the documentation.
        needs: The accepted datatypes in words.
        result_datatype: Datatype of the merged output, by that of the members.
        merge: Merges arrays of one shape, given their weights and the member axis.
        adds_member_axis: True if the output has an axis of members behind the rows.
    """

    summary: str
    accepts: frozenset[str]
    needs: str
    result_datatype: Callable[[str], str]
    merge: Callable[[Sequence[Array], Sequence[float], int], Array]
    takes_weights: bool = False
    adds_member_axis: bool = False


def _same(datatype: str) -> str:
    return datatype


def _float_of(datatype: str) -> str:
    return datatype if datatype in FLOATS else "FP64"


def _weighted_mean(arrays: Sequence[Array], weights: Sequence[float], _: int) -> Array:
    total = np.zeros(arrays[0].shape, np.float64)
    # Infinity minus infinity is NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        for array, weight in zip(arrays, weights, strict=True):
            total += np.multiply(array, weight, dtype=np.float64)
        total /= sum(weights)
        return total.astype(NUMPY_DTYPES[_float_of(datatype_of(arrays[0].dtype))])


def _mean(arrays: Sequence[Array], _: Sequence[float], member_axis: int) -> Array:
    return _weighted_mean(arrays, [1.0] * len(arrays), member_axis)


def _max(arrays: Sequence[Array], _: Sequence[float], __: int) -> Array:
    return np.asarray(reduce(np.maximum, arrays))


def _vote(arrays: Sequence[Array], _: Sequence[float], __: int) -> Array:
    stacked = np.stack(arrays)
    votes = np.stack([np.asarray(stacked == each).sum(axis=0) for each in stacked])
    winners = np.expand_dims(votes.argmax(axis=0), 0)
    return np.take_along_axis(stacked, winners, axis=0).reshape(arrays[0].shape)


def _stack(arrays: Sequence[Array], _: Sequence[float], member_axis: int) -> Array:
    return np.stack(arrays, axis=member_axis)


_NUMBERS = DATATYPES - {BYTES}

MERGE_RULES: dict[str, MergeRule] = {
    "mean": MergeRule(
        summary="Mean, computed in FP64 and rounded once; floats keep their datatype, integers and BOOL give FP64.",
        accepts=_NUMBERS,
        needs="numbers",
        result_datatype=_float_of,
        merge=_mean,
    ),
    "weighted_mean": MergeRule(
        summary="Mean with a weight for each member; datatypes as for `mean`.",
        accepts=_NUMBERS,
        needs="numbers",
        result_datatype=_float_of,
        merge=_weighted_mean,
        takes_weights=True,
    ),
    "max": MergeRule(
        summary="Maximum; NaN wins.",
        accepts=_NUMBERS,
        needs="numbers",
        result_datatype=_same,
        merge=_max,
    ),
    "vote": MergeRule(
        summary="The label of most members; among equals, that of the first of them.",
        accepts=DATATYPES - FLOATS,
        needs="labels (integers, BOOL or BYTES)",
        result_datatype=_same,
        merge=_vote,
    ),
    "stack": MergeRule(
        summary="All members' outputs along a new axis behind the rows.",
        accepts=DATATYPES,
        needs="any datatype",
        result_datatype=_same,
        merge=_stack,
        adds_member_axis=True,
    ),
}


def cannot_merge(rule: str, datatype: str) -> str | None:
    """Explain why a rule cannot merge a datatype; None if it can."""
    if datatype in MERGE_RULES[rule].accepts:
        return None
    return f"{rule} needs {MERGE_RULES[rule].needs}"
