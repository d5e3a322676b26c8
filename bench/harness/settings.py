"""How long and how often to measure."""

from typing import Any

import msgspec

from bench.harness.messages import Mode

_LEAST_BURST = 8


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a benchmark that can be chosen.

    Attributes:
        repeats: Rounds; in each, every system has its turn.
        modes: PyFlink execution modes, for this project and the naive map alike.
        latency_seconds: How long each latency run sends.
        latency_warm_up_seconds: How long it sends before, at a higher rate, for the JVM to compile what is hot.
        latency_tasks: Parallelism of the Flink systems in latency runs.
        throughput_requests: Requests that are measured in a throughput run.
        throughput_warm_up: Requests before these: after so many, the JVM has compiled what is hot.
        workloads: Those of the scenarios efficiency, sustainable and ledger, by name; empty for all.
        burst_share: Of the requests with which a scenario finds out what a system's capacity is.
        search_warm_up_seconds: How long a system has a load before its first search, which is not measured.
        search_probes: How often the range of a sustainable rate is halved in the first round.
        search_seconds: How long each of these probes sends.
        load_seconds: How long the rate that was found is confirmed, and each share of it sends.
        calm_seconds: How long a load lasts that a system can keep up with, before the burst and after it.
        burst_seconds: How long the burst lasts.
        pipeline_share: Of the requests that a model in stages is measured with.
        memory_requests: Requests over which memory is watched.
        memory_warm_up: Requests before these, as fast as they are taken.
        memory_settle: Requests between the two, as the watched ones are sent: the JVM makes its heap fit the pace.
        memory_rate_per_s: How fast the watched ones are sent.
        balance_requests: Requests of each balance run.
        overload_warm_up: Requests that are answered before the peak is measured, and before each job's loads.
        overload_peak_requests: Requests over which the peak is measured.
        overload_seconds: How long each load lasts.
        overload_long_seconds: How long the last one does.
    """

    repeats: int = 5
    modes: tuple[Mode, ...] = ("thread",)
    latency_seconds: float = 15.0
    latency_warm_up_seconds: float = 15.0
    latency_tasks: int = 1
    throughput_requests: int = 200_000
    throughput_warm_up: int = 500_000
    workloads: tuple[str, ...] = ()
    burst_share: float = 1.0
    search_warm_up_seconds: float = 25.0
    search_probes: int = 4
    search_seconds: float = 3.0
    load_seconds: float = 5.0
    calm_seconds: float = 10.0
    burst_seconds: float = 8.0
    pipeline_share: float = 1.0
    memory_requests: int = 100_000
    memory_warm_up: int = 100_000
    memory_settle: int = 40_000
    memory_rate_per_s: float = 1_000.0
    balance_requests: int = 3_000
    overload_warm_up: int = 12_000
    overload_peak_requests: int = 4_000
    overload_seconds: float = 20.0
    overload_long_seconds: float = 300.0

    def wants(self, workload: str) -> bool:
        """Whether a workload is among those to measure."""
        return not self.workloads or workload in self.workloads

    def values(self) -> dict[str, Any]:
        """All values by name, as JSON holds them."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found

    def burst_of(self, requests: int) -> int:
        """How many requests come at once where a full run has so many: their share, and some in any case."""
        return max(_LEAST_BURST, round(requests * self.burst_share))


#: Shows that all of it works, in a small part of the time; its figures mean nothing.
QUICK = Settings(
    repeats=1,
    latency_seconds=3.0,
    latency_warm_up_seconds=2.0,
    throughput_requests=6_000,
    throughput_warm_up=3_000,
    workloads=("ffnn 1", "recognizer"),
    burst_share=0.1,
    search_warm_up_seconds=2.0,
    search_probes=1,
    search_seconds=1.0,
    load_seconds=1.0,
    calm_seconds=2.0,
    burst_seconds=2.0,
    pipeline_share=0.05,
    memory_requests=3_000,
    memory_warm_up=3_000,
    memory_settle=1_000,
    memory_rate_per_s=500.0,
    balance_requests=200,
    overload_warm_up=100,
    overload_peak_requests=200,
    overload_seconds=3.0,
    overload_long_seconds=5.0,
)
