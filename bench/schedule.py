"""When requests are sent: fixed before the first is, so that a slow subject cannot slow its own load down."""

import numpy as np
import numpy.typing as npt


def poisson_offsets_ns(rate_per_s: float, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Arrivals of a Poisson process, in nanoseconds after its start; the same ones for the same seed."""
    gaps_ns = np.random.default_rng(seed).exponential(1e9 / rate_per_s, count)
    return np.cumsum(gaps_ns).astype(np.int64)
