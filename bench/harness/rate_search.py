"""Search for the highest sustainable rate of a running system."""

from dataclasses import dataclass

from bench.harness.analysis.rate_bisection import Probe, Search, judge
from bench.harness.load_run import LoadRun, RunningSystem
from bench.harness.settings import Settings
from bench.workloads.workload import Workload

_LEAST_BOUND_MS = 100.0
_BOUND_OF_MODEL = 5
#: A probe has at least this number of requests, and lasts at most this multiple of its seconds.
_LEAST_REQUESTS, _MOST_TIMES = 60, 3
#: Shares of the rate at full speed.
_LOW, _HIGH = 0.05, 1.3
#: Shares of the rate of an earlier round.
_BEFORE_LOW, _BEFORE_HIGH, BEFORE_PROBES = 0.87, 1.5, 2
_CONFIRMATIONS = 6


class SearchSettings(Settings, frozen=True, kw_only=True):
    """Settings of a search.

    Attributes:
        search_warm_up_seconds: Duration of the load before a system's first search.
        search_probes: Halvings of the range in the first round.
        search_seconds: Duration of each probe.
    """

    search_warm_up_seconds: float = 25.0
    search_probes: int = 4
    search_seconds: float = 3.0


@dataclass(frozen=True)
class FoundRate:
    """Result of a search.

    Attributes:
        rate_per_s: The confirmed rate, or 0.
        offered: The last load.
    """

    rate_per_s: float
    offered: LoadRun
    probes: list[Probe]


def bound_of(model_ms: float) -> float:
    """Limit of p99 in milliseconds, for a model's own time."""
    return max(_LEAST_BOUND_MS, _BOUND_OF_MODEL * model_ms)


def seconds_of(rate_per_s: float, seconds: float) -> float:
    """Duration of a load, longer at low rates."""
    return min(max(seconds, _LEAST_REQUESTS / rate_per_s), seconds * _MOST_TIMES)


def find(
    service: RunningSystem,
    workload: Workload,
    burst: int,
    bound_ms: float,
    settings: SearchSettings,
    *,
    before_per_s: float | None = None,
    seed: int = 0,
) -> FoundRate:
    """Warm up, measure the rate at full speed, and search below it.

    Args:
        burst: Requests of each burst.
        before_per_s: Rate of an earlier round.
    """
    burst = settings.burst_of(burst)
    service.burst(workload, burst)
    if before_per_s:
        low, high, halvings = before_per_s * _BEFORE_LOW, before_per_s * _BEFORE_HIGH, BEFORE_PROBES
    else:
        peak_per_s = service.burst(workload, burst).rate_per_s
        low, high, halvings = peak_per_s * _LOW, peak_per_s * _HIGH, settings.search_probes
    search = Search(low, high, halvings)
    probes: list[Probe] = []
    while True:
        seconds = settings.load_seconds if search.is_confirming else settings.search_seconds
        offered, probe = offer(service, workload, search.next_per_s, seconds, bound_ms, seed=seed + len(probes))
        search.note(kept_up=probe.kept_up)
        probes.append(probe)
        if search.found is not None or len(probes) == halvings + _CONFIRMATIONS:
            return FoundRate(search.found or 0.0, offered, probes)


def offer(
    service: RunningSystem, workload: Workload, rate_per_s: float, seconds: float, bound_ms: float, seed: int
) -> tuple[LoadRun, Probe]:
    """Send one load and judge it."""
    offered = service.offer(workload, rate_per_s, seconds_of(rate_per_s, seconds), seed)
    spent_ms, at_ns = offered.latencies()
    return offered, judge(rate_per_s, offered.tally, spent_ms, at_ns, bound_ms)
