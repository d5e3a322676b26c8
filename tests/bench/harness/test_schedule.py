import numpy as np
import pytest

from bench.harness.schedule import phases_offsets_ns, poisson_offsets_ns


def test_schedule_mean_is_the_rate() -> None:
    offsets_ns = poisson_offsets_ns(rate_per_s=200, count=20_000, seed=3)
    assert len(offsets_ns) == 20_000
    assert offsets_ns[-1] / 1e9 == pytest.approx(100, rel=0.03)


def test_schedule_gaps_are_exponential() -> None:
    gaps_ns = np.diff(poisson_offsets_ns(rate_per_s=1000, count=50_000, seed=1))
    assert gaps_ns.min() >= 0
    assert gaps_ns.std() == pytest.approx(gaps_ns.mean(), rel=0.03)


def test_schedule_same_seed_is_equal() -> None:
    assert np.array_equal(poisson_offsets_ns(50, 100, seed=7), poisson_offsets_ns(50, 100, seed=7))
    assert not np.array_equal(poisson_offsets_ns(50, 100, seed=7), poisson_offsets_ns(50, 100, seed=8))


def test_schedule_phases_have_their_rates_in_turn() -> None:
    offsets_ns = phases_offsets_ns([(100, 20), (1000, 5), (100, 20)], seed=3)
    assert np.diff(offsets_ns).min() >= 0
    seconds = offsets_ns / 1e9
    assert ((seconds >= 20.5) & (seconds < 24.5)).sum() == pytest.approx(4000, rel=0.1)
    assert (seconds < 20).sum() == pytest.approx(2000, rel=0.05)
    assert seconds[-1] == pytest.approx(45, rel=0.05)
