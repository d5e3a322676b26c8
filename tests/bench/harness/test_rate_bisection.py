import numpy as np
import pytest

from bench.harness.analysis.measures import Tally
from bench.harness.analysis.rate_bisection import Search, judge, lag_of

CLEAN = Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0)
SECOND_NS = 1_000_000_000


def search_of(capacity_per_s: float, search: Search) -> list[float]:
    """All rates that are tried with a system that keeps up with so many requests a second."""
    tried: list[float] = []
    while search.found is None and len(tried) < 40:
        tried.append(search.next_per_s)
        search.note(kept_up=tried[-1] <= capacity_per_s)
    return tried


@pytest.mark.parametrize("capacity_per_s", [15, 300, 777, 1000])
def test_search_more_probes_find_the_rate_more_exactly(capacity_per_s: float) -> None:
    search = Search(10, 1100, probes=6)
    search_of(capacity_per_s, search)
    assert search.found is not None
    assert search.found <= capacity_per_s
    assert search.found > capacity_per_s * (10 / 1100) ** (1 / 2**6)


def test_search_found_rate_is_confirmed() -> None:
    search = Search(1, 256, probes=3)
    for kept_up in (True, True, False):
        assert not search.is_confirming
        search.note(kept_up=kept_up)
    assert search.is_confirming
    assert search.found is None
    search.note(kept_up=True)
    assert search.found == pytest.approx(64)


def test_search_failed_confirmation_steps_down() -> None:
    search = Search(25, 100, probes=1)
    search.note(kept_up=True)
    assert search.next_per_s == 50
    search.note(kept_up=False)
    assert search.next_per_s == pytest.approx(42.5)
    search.note(kept_up=True)
    assert search.found == pytest.approx(42.5)


def test_search_low_capacity_goes_below_the_range() -> None:
    search = Search(100, 200, probes=2)
    assert search_of(50, search)[-1] == search.found
    assert search.found is not None
    assert 42.5 <= search.found <= 50


def test_search_no_sustainable_rate_finds_none() -> None:
    assert len(search_of(0, Search(1, 100, probes=3))) == 40


def test_lag_queue_below_capacity_is_zero() -> None:
    rng = np.random.default_rng(1)
    at_ns = np.sort(rng.integers(0, 10 * SECOND_NS, 500))
    assert lag_of(rng.exponential(20, 500), at_ns) <= 0.001


def test_lag_tenth_too_slow_is_a_tenth() -> None:
    at_ns = np.arange(0, 10 * SECOND_NS, SECOND_NS // 50)
    spent_ms = 5 + 100 * at_ns / SECOND_NS
    assert lag_of(spent_ms, at_ns) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("spent_ms", "tally", "kept_up"),
    [
        ([5.0] * 100, CLEAN, True),
        ([5.0] * 90 + [300.0] * 10, CLEAN, False),
        ([5.0] * 100, Tally(10, 9, 1, 0, 0, 0.0), False),
        (list(np.linspace(1, 99, 100)), CLEAN, False),
    ],
)
def test_judge_wrong_slow_or_lagging_is_not_kept_up(spent_ms: list[float], tally: Tally, kept_up: bool) -> None:
    at_ns = np.linspace(0, 4 * SECOND_NS, 100).astype(np.int64)
    probe = judge(50, tally, np.array(spent_ms), at_ns, bound_ms=100)
    assert probe.kept_up == kept_up
