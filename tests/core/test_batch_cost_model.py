"""BatchCostModel: measurements, corrected by later runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement

MEASURED = [Measurement(1, 2.0), Measurement(2, 3.0), Measurement(4, 6.0), Measurement(8, 24.0)]


def test_costs_without_measurements_predict_nothing() -> None:
    unknown = BatchCostModel()
    unknown.observe(4, 100.0)
    assert (unknown.predict_ms(4), unknown.at_least_ms(4), unknown.best_rows(64)) == (0.0, 0.0, 64)


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


def test_costs_without_measurements_expect_the_last_runs() -> None:
    costs = BatchCostModel()
    assert costs.expect_ms(4) == 0.0
    costs.observe(4, 2000.0)
    assert costs.expect_ms(1) == 2000.0
    for _ in range(40):
        costs.observe(1, 10.0)
    assert costs.expect_ms(4) == pytest.approx(10.0, rel=0.01)
    # Neither backlog nor deadlines count on it.
    assert (costs.predict_ms(4), costs.at_least_ms(4)) == (0.0, 0.0)


def test_costs_with_measurements_expect_the_prediction() -> None:
    assert BatchCostModel(MEASURED).expect_ms(1) == BatchCostModel(MEASURED).predict_ms(1)
