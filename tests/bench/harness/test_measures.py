import math

import numpy as np
import pytest

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.analysis.measures import (
    Percentiles,
    Spread,
    append_latencies_ms,
    first_answers,
    fit_line,
    latencies_ms,
    rate_per_s,
    recovery_s,
    tally,
)
from bench.harness.response_log import ResponseLog
from bench.workloads.workload import TOLERANCE

MS = 1_000_000
#: As a deviation: the answer says `overloaded`, or `deadline_exceeded`.
REFUSED, EXPIRED = -1.0, -2.0


def answers(*records: tuple[int, int, float]) -> ResponseLog:
    """Answers of (id, received at ms, deviation)."""
    ids, times_ms, deviations = zip(*records, strict=True)
    received_ns = np.array(times_ms, np.int64) * MS
    values = np.array(deviations)
    deviation = np.where(values < 0, np.nan, values)
    stages_us = np.full((len(ids), len(PHASES)), np.nan)
    appended_ms = np.array(times_ms, np.int64)
    refused, expired = values == REFUSED, values == EXPIRED
    cosine = np.ones(len(ids))
    return ResponseLog(
        np.array(ids, np.int64), received_ns, appended_ms, deviation, refused, expired, stages_us, cosine
    )


def test_percentiles_of_values_are_numpys() -> None:
    percentiles = Percentiles.of(np.arange(101, dtype=np.float64))
    assert (percentiles.p50_ms, percentiles.p95_ms, percentiles.p99_ms, percentiles.max_ms) == (50, 95, 99, 100)
    assert percentiles.mean_ms == 50


def test_percentiles_of_nothing_are_nan() -> None:
    assert math.isnan(Percentiles.of(np.array([])).p50_ms)


def test_spread_of_values_is_median_and_range() -> None:
    assert Spread.of([3, 1, 100]) == Spread(3, 1, 100)


def test_first_answers_repeated_answer_is_ignored() -> None:
    seen = answers((11, 1, 0), (10, 2, 0), (11, 3, 0), (99, 4, 0))
    assert first_answers(seen, first_id=10, count=3).tolist() == [1, 0, -1]


def test_tally_counts_missing_wrong_and_repeated() -> None:
    #               right       its copy    wrong value   an error        of nobody
    seen = answers((0, 1, 1e-7), (0, 2, 0), (1, 3, 0.5), (2, 4, np.nan), (-1, 5, np.nan))
    found = tally(seen, first_id=0, count=4, tolerance=TOLERANCE)
    assert (found.answered, found.missing, found.wrong, found.repeated) == (3, 1, 2, 2)
    assert found.deviation == pytest.approx(1e-7)
    assert not found.is_clean


def test_tally_refusal_is_not_wrong() -> None:
    found = tally(answers((0, 1, 0), (1, 2, REFUSED), (2, 3, REFUSED)), first_id=0, count=3, tolerance=TOLERANCE)
    assert (found.answered, found.refused, found.wrong) == (3, 2, 0)
    assert found.is_clean


def test_tally_expired_is_not_wrong() -> None:
    found = tally(answers((0, 1, 0), (1, 2, EXPIRED)), first_id=0, count=2, tolerance=TOLERANCE)
    assert (found.answered, found.expired, found.wrong) == (2, 1, 0)


def test_tally_tolerance_is_the_workloads() -> None:
    seen = answers((0, 1, 3e-3), (1, 2, 3e-2))
    assert tally(seen, first_id=0, count=2, tolerance=TOLERANCE).wrong == 2
    assert tally(seen, first_id=0, count=2, tolerance=1e-2).wrong == 1


def test_tally_all_right_is_clean() -> None:
    assert tally(answers((5, 1, 0), (6, 2, 0)), first_id=5, count=2, tolerance=TOLERANCE).is_clean


def test_latency_starts_at_the_scheduled_time() -> None:
    scheduled_ns = np.array([10, 20, 30], np.int64) * MS
    seen = answers((8, 35, 0), (7, 12, 0))
    assert latencies_ms(seen, scheduled_ns, first_id=7).tolist() == [2, 15]
    assert append_latencies_ms(seen, scheduled_ns, first_id=7).tolist() == [2, 15]


def test_rate_warm_up_is_left_out() -> None:
    #          warm-up, slow     then one each 10 ms
    times_ms = np.array([0, 500, 1000, 1010, 1020, 1030], np.int64)
    assert rate_per_s(times_ms, skip=2) == pytest.approx(100)


def test_rate_first_batch_is_not_counted() -> None:
    batches_ms = np.repeat(np.arange(0, 5000, 500, dtype=np.int64), 50)
    assert rate_per_s(batches_ms, skip=60) == pytest.approx(100)


def test_rate_single_batch_is_a_number() -> None:
    assert rate_per_s(np.array([7, 7, 7, 8], np.int64), skip=1) == 2000


def test_rate_too_few_answers_is_nan() -> None:
    assert math.isnan(rate_per_s(np.array([1, 2], np.int64), skip=2))


def test_fit_line_exact_points_are_on_the_line() -> None:
    x = np.array([0.0, 1.0, 2.0, 5.0])
    line = fit_line(x, np.array([700.0, 703.0, 706.0, 715.0]))
    assert [line.slope, line.intercept, line.at(10)] == pytest.approx([3, 700, 730])
    assert line.slope_error == pytest.approx(0, abs=1e-9)


def test_fit_line_noise_raises_the_slope_error() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 10, 200)
    line = fit_line(x, 0.1 * x + rng.normal(0, 1, 200))
    assert abs(line.slope - 0.1) < 3 * line.slope_error
    assert 0.01 < line.slope_error < 0.1


@pytest.mark.parametrize("x", [[1.0, 2.0], [4.0, 4.0, 4.0]])
def test_fit_line_too_few_points_raises(x: list[float]) -> None:
    with pytest.raises(ValueError, match="no line"):
        fit_line(np.array(x), np.array(x))


@pytest.mark.parametrize(("backlog_s", "expected_s"), [(0.0, 0.0), (3.0, 3.0), (100.0, 9.9)])
def test_recovery_ends_at_normal_latency(backlog_s: float, expected_s: float) -> None:
    after_s = np.arange(0, 10, 0.1)
    spent_ms = np.where(after_s < backlog_s, 500.0, 12.0)
    assert recovery_s(after_s, spent_ms, calm_ms=np.array([10.0])) == pytest.approx(expected_s, abs=0.1)


def test_recovery_one_quick_answer_is_not_enough() -> None:
    after_s = np.arange(0, 10, 0.1)
    spent_ms = np.where(after_s < 5, 500.0, 12.0)
    spent_ms[3] = 1
    assert recovery_s(after_s, spent_ms, calm_ms=np.array([10.0])) == 5
