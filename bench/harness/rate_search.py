"""Looks for the highest rate that a system in service can keep up with."""

from dataclasses import dataclass

from bench.harness.analysis.rate_bisection import Probe, Search, judge
from bench.harness.load_run import LoadRun, RunningSystem
from bench.harness.settings import Settings
from bench.workloads.workload import Workload

_LEAST_BOUND_MS = 100.0
_BOUND_OF_MODEL = 5
#: A probe of fewer requests says little; but it shall not take longer than so many times its seconds.
_LEAST_REQUESTS, _MOST_TIMES = 60, 3
#: Of the rate at which requests that were there before are answered.
_LOW, _HIGH = 0.05, 1.3
#: Of what was found before: two probes tell whether as much, a seventh more or a third more can be kept up with now.
_BEFORE_LOW, _BEFORE_HIGH, BEFORE_PROBES = 0.87, 1.5, 2
_CONFIRMATIONS = 6


class SearchSettings(Settings, frozen=True, kw_only=True):
    """Settings of a search.

    Attributes:
        search_warm_up_seconds: Duration of the load before a system's first search, which is not measured.
        search_probes: Halvings of the range in the first round.
        search_seconds: Duration of each probe.
    """

    search_warm_up_seconds: float = 25.0
    search_probes: int = 4
    search_seconds: float = 3.0


@dataclass(frozen=True)
class FoundRate:
    """What a search came to.

    Attributes:
        rate_per_s: 0 if no rate was confirmed.
        offered: The last load, which confirmed it.
        probes: All that was tried, the last one last.
    """

    rate_per_s: float
    offered: LoadRun
    probes: list[Probe]


def bound_of(model_ms: float) -> float:
    """What p99 may be at most, in milliseconds, for a model that takes so long for a request."""
    return max(_LEAST_BOUND_MS, _BOUND_OF_MODEL * model_ms)


def seconds_of(rate_per_s: float, seconds: float) -> float:
    """How long a load of this rate lasts where so many seconds were asked for."""
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
    """Warms up, finds out what is too much, and searches below it.

    Args:
        burst: Requests for both.
        before_per_s: What an earlier round found, to search about.
    """
    burst = settings.burst_of(burst)
    service.burst(workload, burst)  # the JVM compiles what is hot
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
    """One load, longer than asked for where it would be of too few requests, and whether the system kept up."""
    offered = service.offer(workload, rate_per_s, seconds_of(rate_per_s, seconds), seed)
    spent_ms, at_ns = offered.latencies()
    return offered, judge(rate_per_s, offered.tally, spent_ms, at_ns, bound_ms)
