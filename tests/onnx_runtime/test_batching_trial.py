"""Trials of models that are Python functions."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from anabranch.onnx_runtime.batching_trial import NoTrial, TrialLimits, try_batches
from anabranch.onnx_runtime.trial_inputs import RowPool, TrialInput, generated_pools
from anabranch.schemas.model import BatchingVerdict
from anabranch.schemas.tensors import Array

X = (TrialInput("x", "FP32", ("n", 4)),)


def tried(
    function: Callable[[Array], Array | Sequence[Array]],
    inputs: Sequence[TrialInput] = X,
    *,
    tolerance: float = 1e-3,
    most_rows: int = 64,
    row_s: float = 0.0,
    pools: Sequence[RowPool] | None = None,
) -> tuple[BatchingVerdict, list[int]]:
    """Returns the verdict and the sizes of all runs, with a clock that `row_s` moves."""
    sizes: list[int] = []

    def run(rows: Mapping[str, Array]) -> Sequence[Array]:
        x = rows[inputs[0].name]
        sizes.append(len(x))
        made = function(x)
        return [made] if isinstance(made, np.ndarray) else made

    limits = TrialLimits(tolerance, most_rows, 0.7, lambda: row_s * sum(sizes))
    return try_batches(run, ["y"], generated_pools(inputs) if pools is None else pools, limits), sizes


def interact(when: Callable[[Array], bool]) -> Callable[[Array], Array]:
    """Rows that affect each other at times."""
    return lambda x: x + x.mean(axis=0) if when(x) else x


@pytest.mark.parametrize(
    "when",
    [
        lambda x: len(x) == 2,
        lambda x: len(x) == 3,
        lambda x: len(x) > 40,
        lambda x: len(x) == 64,
        lambda x: len(x) == 33,
        lambda x: len(x) > 500,
        lambda x: len(x) > 1 and np.abs(x).max() > 50,
        lambda x: len(x) > 1 and not x.any(axis=1).all(),
        lambda x: len(np.unique(x, axis=0)) < len(x) < 3,
        lambda x: len(x) > 1 and np.abs(x[1:]).max() < 0.01,
        lambda x: len(x) == 8 and np.abs(x).max() > 500,
    ],
    ids=["two", "three", "many", "most", "33", "very many", "large", "zeros", "twins", "small", "eight"],
)
def test_trial_rare_interaction_of_rows_is_found(when: Callable[[Array], bool]) -> None:
    verdict, _ = tried(interact(when))
    assert verdict.level == "within request"
    assert verdict.reason.startswith("rows affect each other in a batch of ")


def test_trial_independent_rows_are_strangers() -> None:
    verdict, sizes = tried(np.tanh, most_rows=100)
    assert (verdict.level, verdict.deviation) == ("strangers", 0.0)
    assert {1, 2, 3, 4, 5, 6, 7, 8, 100} <= set(sizes)
    assert verdict.most_rows >= 100


@pytest.mark.parametrize(("tolerance", "level"), [(1e-4, "within request"), (1e-2, "strangers")])
def test_trial_tolerance_decides_on_a_small_deviation(tolerance: float, level: str) -> None:
    verdict, _ = tried(lambda x: x * (1.001 if len(x) > 1 else 1), tolerance=tolerance)
    assert verdict.level == level
    assert verdict.deviation == pytest.approx(1e-3, rel=0.1)


def test_trial_slow_model_gets_fewer_batches_and_says_so() -> None:
    verdict, sizes = tried(np.tanh, row_s=0.1)
    assert verdict.level == "strangers"
    assert "cut short by time" in verdict.reason
    assert (verdict.most_rows, sum(sizes)) == (8, 1 + 2 + 2 + 1 + 3 + 2 + 8)


def test_trial_slow_model_gets_large_batches_of_smaller_rows() -> None:
    elements: list[int] = []

    def run(rows: Mapping[str, Array]) -> Sequence[Array]:
        elements.append(rows["x"].size)
        return [rows["x"][:, :1] + (len(rows["x"]) > 40)]

    inputs = (TrialInput("x", "FP32", ("n", "length")),)
    limits = TrialLimits(1e-3, 64, 0.7, lambda: 1e-3 * sum(elements))
    verdict = try_batches(run, ["y"], generated_pools(inputs), limits)
    assert verdict.level == "within request"
    assert verdict.most_rows == 64


def test_trial_slow_model_with_an_interaction_is_found() -> None:
    verdict, _ = tried(interact(lambda x: np.abs(x).max() > 500), row_s=0.5)
    assert verdict.level == "within request"


def test_trial_too_slow_model_is_not_tried() -> None:
    with pytest.raises(NoTrial, match=r"a run takes 4\.0 s"):
        tried(np.tanh, row_s=4.0)


def test_trial_output_without_rows_keeps_requests_whole() -> None:
    verdict, _ = tried(lambda x: x.sum(axis=0))
    assert (verdict.level, verdict.reason) == (
        "whole",
        "axis 0 of output 'y' does not count rows: [4] for 1 rows",
    )


def test_trial_batch_that_fails_keeps_requests_whole() -> None:
    verdict, _ = tried(lambda x: x.reshape(1, 4))
    assert verdict.level == "whole"
    assert "fail as 3 together" in verdict.reason


@pytest.mark.parametrize("function", [lambda x: x * 0, lambda x: x * np.nan], ids=["equal", "nan"])
def test_trial_outputs_that_tell_nothing_are_no_proof(function: Callable[[Array], Array]) -> None:
    with pytest.raises(NoTrial, match="equal, or NaN"):
        tried(function)


def test_trial_outputs_equal_alone_can_still_differ_together() -> None:
    verdict, _ = tried(lambda x: np.exp(x - x.max(axis=0)) / np.exp(x - x.max(axis=0)).sum(axis=0))
    assert verdict.level == "within request"


def test_trial_model_without_usable_pool_says_why() -> None:
    def refuse(_: Array) -> Array:
        raise ValueError("no such index\nmore")

    with pytest.raises(NoTrial, match=r"^no such index$"):
        tried(refuse)


def test_trial_integers_of_unknown_range_are_tried_smaller() -> None:
    table = np.arange(8.0)
    verdict, _ = tried(lambda i: table[i], (TrialInput("i", "INT64", ("n",)),))
    assert verdict.level == "strangers"


def test_trial_open_axis_is_tried_in_several_sizes() -> None:
    def convolve(x: Array) -> Array:
        if x.shape[1] > 16:
            raise ValueError("too long")
        return x[:, :1] * 2

    verdict, _ = tried(convolve, (TrialInput("x", "FP32", ("n", "length")),))
    assert verdict.level == "strangers"


def test_trial_random_model_differs_in_an_equal_run() -> None:
    rng = np.random.default_rng(3)
    verdict, _ = tried(lambda x: x + rng.standard_normal(x.shape))
    assert verdict.level == "within request"
    assert verdict.reason.startswith("equal runs differ: ")


def rows_of(pool: RowPool) -> Iterator[Mapping[str, Array]]:
    yield from pool.usual
    yield from pool.outliers


def test_pools_masks_lengths_and_ranges_hold() -> None:
    inputs = (
        TrialInput("mask", "INT64", ("n", "s"), kind="mask"),
        TrialInput("ids", "INT32", ("n", "s"), end=30),
        TrialInput("lengths", "INT64", ("n",), kind="length"),
        TrialInput("flag", "BOOL", ("n", 2)),
        TrialInput("half", "FP16", ("n", 3)),
        TrialInput("empty", "FP32", ("n", 0)),
        TrialInput("text", "BYTES", ("n", "s")),
    )
    pools = list(generated_pools(inputs))
    assert [pool.usual[0]["ids"].shape[1] for pool in pools] == [64, 32, 16, 8, 4, 2, 1, 256]
    for row in rows_of(pools[0]):
        assert all(array.shape[0] == 1 for array in row.values())
        assert row["mask"].max() == 1
        assert (np.diff(row["mask"].astype(int)) <= 0).all()
        assert 0 <= row["ids"].min() <= row["ids"].max() < 30
        assert 1 <= row["lengths"].min() <= row["lengths"].max() <= 64
        assert np.isfinite(row["half"]).all()
        assert isinstance(row["text"].flat[0], bytes)


def test_trial_batch_beyond_the_largest_may_fail() -> None:
    def run(x: Array) -> Array:
        if len(x) > 64:
            raise MemoryError("too large")
        return np.tanh(x)

    verdict, _ = tried(run, most_rows=64)
    assert (verdict.level, verdict.most_rows) == ("strangers", 64)
