"""How long and how often to measure."""

import msgspec

from bench.orders import Mode


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a benchmark that can be chosen.

    Attributes:
        repeats: Rounds; in each, every subject has its turn.
        modes: PyFlink execution modes, for this project and the naive map alike.
        latency_seconds: How long each latency run sends.
        latency_warm_up_seconds: How long it sends before, at a higher rate, for the JVM to compile what is hot.
        latency_tasks: Parallelism of the Flink subjects in latency runs.
        throughput_requests: Requests that are measured in a throughput run.
        throughput_warm_up: Requests before these: after so many, the JVM has compiled what is hot.
        memory_requests: Requests over which memory is watched.
        memory_warm_up: Requests before these, as fast as they are taken.
        memory_settle: Requests between the two, as the watched ones are sent: the JVM makes its heap fit the pace.
        memory_rate_per_s: How fast the watched ones are sent.
        overload_peak_requests: Requests over which the peak is measured.
        overload_seconds: How long each load lasts, and a fifth of how long the last one does.
    """

    repeats: int = 3
    modes: tuple[Mode, ...] = ("thread",)
    latency_seconds: float = 30.0
    latency_warm_up_seconds: float = 30.0
    latency_tasks: int = 1
    throughput_requests: int = 200_000
    throughput_warm_up: int = 600_000
    memory_requests: int = 100_000
    memory_warm_up: int = 100_000
    memory_settle: int = 40_000
    memory_rate_per_s: float = 1_000.0
    overload_peak_requests: int = 4_000
    overload_seconds: float = 60.0


#: Shows that all of it works, in a few minutes; its figures mean nothing.
QUICK = Settings(
    repeats=1,
    latency_seconds=3.0,
    latency_warm_up_seconds=2.0,
    throughput_requests=6_000,
    throughput_warm_up=3_000,
    memory_requests=3_000,
    memory_warm_up=3_000,
    memory_settle=1_000,
    memory_rate_per_s=500.0,
    overload_peak_requests=200,
    overload_seconds=3.0,
)
