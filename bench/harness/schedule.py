"""Schedules of requests, fixed before the run: a slow system cannot slow its load."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def poisson_offsets_ns(rate_per_s: float, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Arrivals of a Poisson process in nanoseconds after its start."""
    gaps_ns = np.random.default_rng(seed).exponential(1e9 / rate_per_s, count)
    return np.cumsum(gaps_ns).astype(np.int64)


def phases_offsets_ns(phases: Sequence[tuple[float, float]], seed: int) -> npt.NDArray[np.int64]:
    """Arrivals of Poisson processes in turn, each of a rate and a duration."""
    parts, start_ns = [], 0
    for place, (rate_per_s, seconds) in enumerate(phases):
        offsets_ns = poisson_offsets_ns(rate_per_s, round(rate_per_s * seconds), seed + place)
        parts.append(start_ns + offsets_ns)
        # A later start keeps the order.
        start_ns = max(start_ns + round(seconds * 1e9), int(parts[-1][-1]) if len(offsets_ns) else 0)
    return np.concatenate(parts)
