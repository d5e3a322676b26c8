import pytest

from bench.harness.analysis.ratio_interval import RatioInterval
from bench.harness.analysis.rounds import Comparison, Rounds

LIMIT = 2.0


def rounds(*ratios: float, limit: float | None = LIMIT) -> Rounds:
    made = Rounds([Comparison("small", "ours", "peer", limit), Comparison("small", "ours", "other", None)], 3, 0.05)
    for repeat, ratio in enumerate(ratios):
        made.note("small", "ours", repeat, 10 * ratio)
        made.note("small", "peer", repeat, 10)
    return made


@pytest.mark.parametrize(
    ("ratios", "is_needed"),
    [
        ((3.0, 3.1, 3.0), False),
        ((1.0, 1.1, 1.0), False),
        ((2.0, 2.01, 1.99), False),
        ((1.8, 2.1, 2.3), True),
        ((3.0,), True),
    ],
    ids=["above", "below", "narrow", "open", "one round"],
)
def test_rounds_end_once_an_interval_says_enough(ratios: tuple[float, ...], is_needed: bool) -> None:
    made = rounds(*ratios)
    assert made.needs("small", "ours", 2), "all systems have the least rounds"
    assert made.needs("small", "ours", 3) == is_needed
    assert made.needs("small", "peer", 3) == is_needed
    assert not made.needs("small", "other", 3)
    assert not made.needs("large", "ours", 3)


def test_turn_of_a_round_does_not_end_that_of_its_peer() -> None:
    made = rounds(1.8, 2.1, 2.3)
    made.note("small", "ours", 3, 21)
    assert made.needs("small", "peer", 3)


def test_ratio_without_limit_needs_no_more_rounds() -> None:
    assert not rounds(1.8, 2.1, 2.3, limit=None).needs("small", "ours", 3)


def test_interval_on_one_side_decides() -> None:
    found = RatioInterval(2.0, 1.9, 2.1)
    assert found.half_width == pytest.approx(0.05)
    assert (found.decides(1.8), found.decides(2.0), found.decides(2.2)) == (True, False, True)
