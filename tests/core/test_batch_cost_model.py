"""BatchCostModel: measurements, corrected by later runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.scheduling.batch_cost_model import (
    BatchCostModel,
    EnsembleCosts,
    Measurement,
    StageWaits,
)
from anabranch.operators.core.scheduling.credits import Credits

MEASURED = [Measurement(1, 2.0), Measurement(2, 3.0), Measurement(4, 6.0), Measurement(8, 24.0)]


def test_costs_without_measurements_and_runs_are_zero() -> None:
    unknown = BatchCostModel()
    assert (unknown.predict_ms(4), unknown.at_least_ms(4), unknown.best_rows(64)) == (0.0, 0.0, 64)
    assert unknown.price(64) == (0.0, 0.0)


@pytest.mark.parametrize(("rows", "run_ms"), [(1, 2.0), (2, 3.0), (3, 4.5), (4, 6.0), (6, 15.0), (8, 24.0), (16, 48.0)])
def test_costs_between_measurements_are_linear(rows: int, run_ms: float) -> None:
    assert BatchCostModel(MEASURED).predict_ms(rows) == run_ms


@pytest.mark.parametrize(("max_rows", "best"), [(1, 1), (2, 2), (3, 2), (4, 2), (8, 2), (64, 2)])
def test_costs_best_rows_is_the_smallest_of_the_cheapest(max_rows: int, best: int) -> None:
    assert BatchCostModel(MEASURED).best_rows(max_rows) == best


def test_costs_best_rows_of_a_falling_curve_is_the_limit() -> None:
    better = BatchCostModel([Measurement(1, 1.0), Measurement(8, 2.0), Measurement(64, 4.0)])
    assert [better.best_rows(limit) for limit in (1, 7, 8, 64, 100)] == [1, 1, 8, 64, 100]


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([], 64),
        ([(1, 0.01), (64, 0.1), (128, 0.15), (1024, 0.9)], 1024),
        ([(1, 0.01), (64, 0.1), (512, 0.8), (1024, 1.2)], 512),
        ([(1, 0.01), (64, 0.1), (128, 0.5)], 64),
        ([(1, 1.0), (32, 10.0), (64, 15.0)], 64),
        ([(1, 50.0), (2, 90.0)], 64),
        ([(1, 50.0), (2, 100.0), (4, 200.0)], 1),
    ],
)
def test_costs_best_rows_without_limit_is_large_if_quick(measured: list[tuple[int, float]], best: int) -> None:
    assert BatchCostModel([Measurement(*each) for each in measured]).best_rows(None) == best


def test_costs_best_rows_ignores_a_small_gain() -> None:
    assert BatchCostModel([Measurement(1, 100.0), Measurement(64, 6200.0)]).best_rows(64) == 1


def test_costs_best_rows_of_a_tiny_model_is_the_limit() -> None:
    assert BatchCostModel([Measurement(1, 0.001), Measurement(32, 0.032), Measurement(64, 0.07)]).best_rows(64) == 64


@pytest.mark.parametrize(
    ("most_ms", "most_rows", "rows"), [(24.0, 8, 8), (23.0, 8, 4), (5.9, 4, 2), (1.0, 4, 2), (1.0, 1, 1)]
)
def test_costs_rows_within_a_time_are_the_half_of_the_half(most_ms: float, most_rows: int, rows: int) -> None:
    """Until a smaller batch wastes time: a row alone costs 2 ms, one of two 1.5 ms."""
    assert BatchCostModel(MEASURED).rows_within(most_ms, most_rows) == rows


def test_costs_rows_within_a_time_are_all_without_costs() -> None:
    assert BatchCostModel().rows_within(1.0, 32) == 32


def test_costs_at_least_without_runs_is_zero() -> None:
    costs = BatchCostModel(MEASURED)
    assert costs.at_least_ms(4) == 0
    costs.observe(2, 6.0)
    assert costs.at_least_ms(4) == 12.0
    costs.observe(1, 1.0)
    assert costs.at_least_ms(4) == 3.0
    costs.observe(1, 100.0)
    assert costs.at_least_ms(4) == 3.0


def test_costs_at_least_forgets_old_runs() -> None:
    costs = BatchCostModel(MEASURED)
    costs.observe(1, 0.1)
    for _ in range(300):
        costs.observe(1, 4.0)
    assert costs.at_least_ms(1) == 4.0
    assert costs.predict_ms(1) == pytest.approx(4.0, rel=1e-3)


@given(st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=700))
def test_costs_at_least_is_the_minimum_of_the_last_runs(runs_ms: list[float]) -> None:
    costs = BatchCostModel([Measurement(1, 1.0)])
    for run_ms in runs_ms:
        costs.observe(1, run_ms)
    assert costs.at_least_ms(1) == min(runs_ms[-256:])


def learned(*runs: tuple[int, int, float], run_rows: int | None = None) -> BatchCostModel:
    """A model without measurements, after runs of rows, elements of a row, and time; few are repeated."""
    costs = BatchCostModel(run_rows=run_rows)
    for rows, row_elements, run_ms in runs if len(runs) > 2 else runs * 3:
        costs.observe(rows, run_ms, row_elements)
    return costs


def test_costs_without_measurements_follow_the_last_runs() -> None:
    costs = learned((1, 4, 2000.0))
    assert costs.predict_ms(1, 4) == pytest.approx(2000.0)
    for _ in range(40):
        costs.observe(1, 10.0, 4)
    assert costs.predict_ms(1, 4) == pytest.approx(10.0, rel=0.15)


def test_costs_of_quick_runs_are_sampled_once_known() -> None:
    costs = BatchCostModel()
    assert not any(costs.skips(0.1) for _ in range(10))
    for _ in range(300):
        costs.observe(1, 0.1)
    assert [costs.skips(0.1) for _ in range(8)] == [True, True, True, False] * 2
    # A run that is slow of a sudden counts always.
    assert not any(costs.skips(1.0) for _ in range(8))


def test_costs_of_unequal_runs_grow_with_elements() -> None:
    costs = learned(*[(1, 64, 5.0), (8, 64, 40.0)] * 4)
    assert costs.price(8, 64) == pytest.approx((0.0, 5.0), rel=0.02, abs=0.1)
    assert costs.predict_ms(1, 512) == pytest.approx(40.0, rel=0.02)


def test_costs_of_a_model_with_own_batch_size_count_runs() -> None:
    costs = learned((4, 64, 10.0), run_rows=4)
    assert (costs.predict_ms(1, 64), costs.predict_ms(5, 64)) == (10.0, 20.0)
    assert costs.price(64, 64) == (0.0, 2.5)


@pytest.mark.parametrize(
    ("row_ms", "call_ms", "best"), [(0.5, 1.0, 64), (20.0, 1.0, 5), (20.0, 25.0, 25), (500.0, 0.0, 1)]
)
def test_costs_best_rows_of_learned_costs_bound_the_batch(row_ms: float, call_ms: float, best: int) -> None:
    costs = learned(*[(rows, 8, call_ms + rows * row_ms) for rows in (1, 4, 16)] * 4)
    assert costs.best_rows(None, 8) == pytest.approx(best, abs=1)
    assert costs.best_rows(2, 8) == min(2, best)


def test_costs_expect_the_last_runs_if_they_are_slower() -> None:
    costs = BatchCostModel()
    costs.observe(1, 60.0, 8)
    # The first run counts a third for a refusal, but may be slow.
    assert (costs.predict_ms(1, 8), costs.expect_ms(1, 8)) == pytest.approx((20.0, 60.0))
    for _ in range(10):
        costs.observe(1, 20.0, 8)
    assert costs.expect_ms(1, 8) == pytest.approx(20.0, rel=0.01)
    for run_ms in (90.0, 80.0):
        costs.observe(1, run_ms, 8)
    assert costs.predict_ms(1, 8) == pytest.approx(20.0)
    assert costs.expect_ms(1, 8) > 35.0


def test_costs_at_least_of_learned_costs_needs_runs() -> None:
    costs = learned(*[(1, 100, 8.0)] * 18)
    assert costs.at_least_ms(1, 100) == 0.0
    for run_ms in (8.0, 8.5, 7.0):
        costs.observe(1, run_ms, 100)
    assert costs.at_least_ms(1, 100) == pytest.approx(7.0)
    # Larger ones may take no longer, smaller ones are unknown.
    assert costs.at_least_ms(1, 1000) == pytest.approx(7.0)
    assert costs.at_least_ms(1, 10) <= 0.1


def test_costs_revision_counts_changes_that_matter() -> None:
    costs = BatchCostModel(MEASURED)
    for _ in range(100):
        costs.observe(1, 2.1)
    assert costs.revision == 0
    for _ in range(100):
        costs.observe(1, 4.0)
    assert 3 <= costs.revision <= 8
    unknown = learned((1, 4, 5.0))
    assert unknown.revision == 3
    for _ in range(100):
        unknown.observe(1, 5.2, 4)
    assert unknown.revision == 3


def test_costs_of_an_ensemble_are_the_mean_of_its_members() -> None:
    members = [learned((1, 4, 5.0)), BatchCostModel([Measurement(1, 3.0), Measurement(4, 4.0)])]
    ensemble = EnsembleCosts(members)
    assert ensemble.price(4, 4) == (2.5, 0.5)
    assert (ensemble.predict_ms(1, 4), ensemble.at_least_ms(1, 4)) == (4.0, 0.0)
    before = ensemble.revision
    for _ in range(8):
        members[0].observe(1, 50.0, 4)
    assert ensemble.revision > before


@pytest.mark.parametrize("row_ms", [0.0, 3.0])
def test_costs_of_stages_are_the_waits_for_them(row_ms: float) -> None:
    stages = StageWaits(row_ms)
    assert stages.price(64, 8) == (0.0, row_ms)
    for _ in range(100):
        for rows in (1, 4):
            stages.note_wait(rows, 6.0 * rows, 8)
    assert stages.predict_ms(10, 8) == pytest.approx(60.0, rel=0.05)
    for _ in range(100):
        stages.note_wait(4, 0.0, 8)
    assert stages.predict_ms(4, 8) <= 1.0
    assert (stages.at_least_ms(64, 8), stages.best_rows(None, 8)) == (0.0, 3 if row_ms else 64)


def test_costs_of_stages_without_profile_are_what_readers_report() -> None:
    """The first batches are small; later ones take 25 ms in the slowest stage, a shard of a large request 100 ms."""
    readers = Credits(1, 1)
    stages = StageWaits(0.0, readers)
    assert stages.quote(None, 8).max_rows == 8
    for row_ms, rows, shard_rows in ((2.0, 12, 32), (2.1, 12, 32), (20.0, 1, 5), (500.0, 1, 1), (0.01, 64, 32)):
        before, readers.row_ms = stages.revision, row_ms
        assert (stages.revision > before) == (row_ms != 2.1), "a small change is no new price"
        assert (stages.quote(None, 8).max_rows, stages.rows_within(100.0, 32)) == (rows, shard_rows)
        assert stages.quote(7, 8).max_rows == 7
    assert StageWaits(0.0, readers, 16).quote(None, 8).max_rows == 16, "the trial's limit"
    assert StageWaits(0.0, Credits(1, 1), 4).quote(None, 8).max_rows == 4
