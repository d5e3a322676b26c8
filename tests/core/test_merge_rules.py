"""Merge rules against plain Python."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.merging.ensemble import merge_members
from anabranch.operators.core.merging.merge_rules import MERGE_RULES, MergeRule, cannot_merge
from anabranch.schemas.model import Ensemble
from anabranch.schemas.tensors import BYTES, DATATYPES, FLOATS, NUMPY_DTYPES, Array, Tensor, datatype_of


@st.composite
def same_arrays(draw: st.DrawFn, datatypes: Sequence[str]) -> list[Array]:
    """Arrays of one datatype and shape, with few values so that they often agree."""
    datatype = draw(st.sampled_from(sorted(datatypes)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count, size = draw(st.integers(1, 5)), math.prod(shape)
    if datatype == BYTES:
        elements: st.SearchStrategy[Any] = st.sampled_from([b"", b"a", b"b", b"\xff"])
    elif datatype == "BOOL":
        elements = st.booleans()
    elif datatype in FLOATS:
        elements = st.sampled_from([-1.5, 0.1, 2.0, 1e4]) | st.floats(width=16)
    else:
        limits: Any = np.iinfo(NUMPY_DTYPES[datatype].str)
        elements = st.sampled_from([0, 1, 2, int(limits.min), int(limits.max)])
    arrays = []
    for _ in range(count):
        array = np.empty(size, object)
        array[:] = draw(st.lists(elements, min_size=size, max_size=size))
        arrays.append((array if datatype == BYTES else array.astype(NUMPY_DTYPES[datatype])).reshape(shape))
    return arrays


def by_element(arrays: Sequence[Array]) -> list[tuple[Any, ...]]:
    return list(zip(*(array.ravel().tolist() for array in arrays), strict=True))


def alike(found: Array, wanted: Sequence[Any]) -> bool:
    """Equal, with NaN equal to NaN."""
    return all(
        one == other or (one != one and other != other)  # noqa: PLR0124
        for one, other in zip(found.ravel().tolist(), wanted, strict=True)
    )


def rounded(value: float, like: Array) -> Any:
    with np.errstate(over="ignore"):
        return np.float64(value).astype(like.dtype if like.dtype.kind == "f" else np.float64).item()


@pytest.mark.slow
@given(same_arrays(sorted(DATATYPES - {BYTES})), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=5, max_size=5))
def test_merge_mean_equals_plain_arithmetic_rounded_once(arrays: list[Array], weights: list[float]) -> None:
    weights = weights[: len(arrays)]
    for merge, shares in (("mean", [1.0] * len(arrays)), ("weighted_mean", weights)):
        merged = MERGE_RULES[merge].merge(arrays, weights, 0)
        wanted = []
        for values in by_element(arrays):
            total = 0.0
            for value, share in zip(values, shares, strict=True):
                total += float(value) * share
            wanted.append(rounded(total / sum(shares), arrays[0]))
        assert merged.shape == arrays[0].shape
        assert alike(merged, wanted)
        assert merged.dtype == (arrays[0].dtype if arrays[0].dtype.kind == "f" else np.float64)


@given(same_arrays(sorted(DATATYPES - FLOATS)))
def test_merge_vote_tie_takes_the_earliest(arrays: list[Array]) -> None:
    merged = MERGE_RULES["vote"].merge(arrays, [1.0] * len(arrays), 0)
    # A counter keeps the order of first occurrence.
    assert merged.ravel().tolist() == [Counter(values).most_common(1)[0][0] for values in by_element(arrays)]
    assert (merged.shape, merged.dtype) == (arrays[0].shape, arrays[0].dtype)


@given(same_arrays(sorted(DATATYPES - {BYTES})))
def test_merge_max_with_nan_gives_nan(arrays: list[Array]) -> None:
    merged = MERGE_RULES["max"].merge(arrays, [1.0] * len(arrays), 0)
    assert alike(merged, [math.nan if any(v != v for v in each) else max(each) for each in by_element(arrays)])  # noqa: PLR0124
    assert (merged.shape, merged.dtype) == (arrays[0].shape, arrays[0].dtype)


@given(same_arrays(sorted(DATATYPES)))
def test_merge_stack_holds_every_array_in_order(arrays: list[Array]) -> None:
    for axis in range(min(arrays[0].ndim, 1) + 1):
        merged = MERGE_RULES["stack"].merge(arrays, [1.0] * len(arrays), axis)
        assert merged.dtype == arrays[0].dtype
        for member, array in enumerate(arrays):
            assert alike(merged.take([member], axis=axis), array.ravel().tolist())


def test_cannot_merge_names_the_refused_datatypes() -> None:
    assert {each for each in DATATYPES if cannot_merge("vote", each)} == FLOATS
    for rule in ("mean", "weighted_mean", "max"):
        assert {each for each in DATATYPES if cannot_merge(rule, each)} == {BYTES}
    assert not any(cannot_merge("stack", each) for each in DATATYPES)
    assert cannot_merge("vote", "FP32") == "vote needs labels (integers, BOOL or BYTES)"
    assert [MERGE_RULES["mean"].result_datatype(each) for each in ("FP16", "INT8", "BOOL")] == ["FP16", "FP64", "FP64"]
    assert MERGE_RULES["max"].result_datatype("INT8") == "INT8"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MERGE_RULES))
@given(data=st.data())
def test_merge_rule_gives_its_declared_datatype_and_shape(name: str, data: st.DataObject) -> None:
    rule = MERGE_RULES[name]
    arrays = data.draw(same_arrays(sorted(rule.accepts)))
    merged = rule.merge(arrays, [2.0] * len(arrays), 0)
    shape = arrays[0].shape
    assert datatype_of(merged.dtype) == rule.result_datatype(datatype_of(arrays[0].dtype))
    assert merged.shape == ((len(arrays), *shape) if rule.adds_member_axis else shape)


@pytest.mark.parametrize("name", list(MERGE_RULES))
def test_merge_rule_uses_weights_only_if_declared(name: str) -> None:
    rule, arrays = MERGE_RULES[name], [np.array([value], np.int32) for value in (1, 5, 7)]
    equal, unequal = (rule.merge(arrays, weights, 0).tolist() for weights in ([1.0] * 3, [1.0, 2.0, 9.0]))
    assert (equal != unequal) == rule.takes_weights


@pytest.mark.parametrize("forgotten", ["accepts", "result_datatype", "merge", "summary", "needs"])
def test_merge_rule_without_a_part_fails_to_start(forgotten: str) -> None:
    parts: dict[str, Any] = {name: getattr(MERGE_RULES["mean"], name) for name in MergeRule.__slots__}
    del parts[forgotten]
    with pytest.raises(TypeError, match=forgotten):
        MergeRule(**parts)


def test_merge_unknown_rule_never_falls_through() -> None:
    ensemble = Ensemble((("a", "1"), ("b", "1")), "median", (1.0, 1.0), needed=2)
    outputs = [(member, (Tensor.from_array("y", np.ones((1, 1))),)) for member in range(2)]
    with pytest.raises(KeyError, match="median"):
        merge_members(ensemble, outputs)
