"""LearnedCost: the time of runs from their sizes."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.scheduling import learned_cost
from anabranch.operators.core.scheduling.learned_cost import LearnedCost
from tests.planted import mutated

Law = Callable[[int, int], float]


def learned(law: Law, sizes: list[tuple[int, int]], runs: int = 60, noise: float = 0.0) -> LearnedCost:
    """Costs after runs of random ones of these rows and elements of a row."""
    random, costs = Random(1), LearnedCost()
    for number in range(runs):
        rows, elements = sizes[number] if number < len(sizes) else random.choice(sizes)
        costs.observe(rows, elements, law(rows, elements) * (1 + random.uniform(-noise, noise)))
    return costs


def test_learned_cost_of_one_size_is_the_same_for_all() -> None:
    costs = learned(lambda rows, _: 5.0 * rows, [(1, 16)])
    assert (costs.predict_ms(1, 16), costs.predict_ms(64, 512)) == (5.0, 5.0)
    # A smaller one is not known: its share does least harm.
    assert (costs.predict_ms(1, 4), costs.price(2, 4), costs.price(64, 4)) == (1.25, (2.5, 0.0), (5.0, 0.0))


@pytest.mark.parametrize(
    ("law", "seen", "unseen"),
    [
        (lambda rows, _: 3.0, [(1, 16), (8, 512)], (64, 64)),
        (lambda rows, elements: 0.02 * rows * elements, [(1, 16), (1, 64), (4, 64)], (8, 512)),
        (lambda rows, elements: 5 + 0.02 * rows * elements, [(1, 16), (1, 512), (4, 64), (8, 128)], (16, 512)),
        (lambda rows, elements: 9 + 1e-3 * rows * elements**2, [(1, 16), (1, 64), (4, 64), (1, 256)], (4, 1024)),
        (lambda rows, elements: 0.01 * rows * (elements + elements**2 / 64), [(1, 16), (8, 64), (1, 256)], (4, 1024)),
    ],
)
def test_learned_cost_of_unseen_size_follows_the_law(law: Law, seen: list[tuple[int, int]], unseen: Any) -> None:
    assert learned(law, seen).predict_ms(*unseen) == pytest.approx(law(*unseen), rel=0.05)
    assert learned(law, seen, 200, noise=0.05).predict_ms(*unseen) == pytest.approx(law(*unseen), rel=0.25)


@pytest.mark.parametrize(("number", "pairs"), [(1, "(0, 2), (1, 2)"), (3, "(0, 1), (1, 2)"), (4, "(0, 1), (0, 2)")])
def test_learned_cost_without_a_term_misses_a_law(number: int, pairs: str) -> None:
    [mark] = test_learned_cost_of_unseen_size_follows_the_law.pytestmark
    with mutated(learned_cost, "_fit", "(0, 1), (0, 2), (1, 2)", pairs), pytest.raises(AssertionError):
        test_learned_cost_of_unseen_size_follows_the_law(*mark.args[1][number])


def test_learned_cost_that_changed_is_followed() -> None:
    costs = learned(lambda rows, elements: 0.02 * rows * elements, [(1, 16), (4, 64)])
    for _ in range(15):
        costs.observe(1, 16, 0.96)
        costs.observe(4, 64, 15.36)
    assert costs.predict_ms(1, 512) == pytest.approx(30.72, rel=0.1)


def test_learned_cost_of_a_rare_size_is_remembered() -> None:
    costs = learned(lambda rows, elements: 0.1 * rows * elements, [(1, 16), (1, 512)], runs=2)
    for _ in range(500):
        costs.observe(1, 16, 1.6)
    assert costs.predict_ms(1, 512) == pytest.approx(51.2, rel=0.1)


def test_learned_cost_revision_counts_changes() -> None:
    costs = LearnedCost()
    for _ in range(3):
        costs.observe(1, 16, 5.0)
    assert costs.revision == 3
    costs.observe(1, 8, 5.0)
    assert costs.revision == 4, "small ones are no longer unknown"
    for number in range(100):
        costs.observe(1, 16, 5.0 + 0.3 * (number % 2))
    assert costs.revision == 4
    for _ in range(8):
        costs.observe(1, 16, 10.0)
    assert costs.revision > 4


def test_learned_cost_of_a_run_is_compared() -> None:
    costs = learned(lambda rows, elements: 0.02 * rows * elements, [(1, 16), (4, 64)])
    assert costs.observe(1, 16, 0.64) == pytest.approx(2.0)
    assert costs.observe(1, 1024, 99.0) == 0.0, "the first of its size"


def test_learned_cost_of_first_runs_counts_less() -> None:
    costs, seen = LearnedCost(), []
    for run_ms in (30.0, 5.0, 5.0, 5.0):
        costs.observe(1, 16, run_ms)
        seen.append(costs.predict_ms(1, 16))
    # The first run is slow.
    assert seen == [pytest.approx(each) for each in (10.0, 5.0 * 2 / 3, 5.0, 5.0)]


def test_learned_cost_with_a_few_slow_runs_stays() -> None:
    costs = learned(lambda rows, elements: 5.0, [(1, 16)])
    for run_ms in (50.0, 60.0, 5.0, 5.0, 5.0, 40.0, 5.0):
        costs.observe(1, 16, run_ms)
        assert costs.predict_ms(1, 16) == pytest.approx(5.0)


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 10**6), st.floats(0.0, 1e5)), max_size=60))
def test_learned_cost_after_any_runs_grows_with_size(runs: list[tuple[int, int, float]]) -> None:
    costs = LearnedCost()
    for rows, elements, run_ms in runs:
        costs.observe(rows, elements, run_ms)
        assert min(costs._terms) >= 0
        assert math.isfinite(costs.predict_ms(64, 10**6))
