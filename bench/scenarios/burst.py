"""Bursts above capacity, in three priorities with a deadline each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from bench.harness.analysis.measures import recovery_s
from bench.harness.environment import BenchEnvironment
from bench.harness.load_run import LoadRun, in_service
from bench.harness.schedule import phases_offsets_ns
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import CONFLUENT, System, anabranch, naive_map
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, magika_files

#: Deadline in milliseconds after the scheduled send time, by priority.
DEADLINES_MS = {1: 100, 5: 500, 9: 2_000}
#: Shares of a system's capacity.
CALM, BURST = 0.5, 1.5

_CAPACITY_REQUESTS = 250
#: Time of a turn beside its load.
_TURN_S = 20.0


class BurstSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        calm_seconds: Duration of the sustainable load before the burst, and after it.
        burst_seconds: Duration of the burst.
    """

    calm_seconds: float = 10.0
    burst_seconds: float = 8.0


class BurstRun(Run, frozen=True, kw_only=True):
    """A burst of more than a system can keep up with.

    Attributes:
        capacity_per_s: Rate at full speed.
        hit_share: Share of requests answered right before their deadline, by priority.
        recovery_s: Time from the burst's end to normal latency.
    """

    capacity_per_s: float
    hit_share: dict[str, float]
    recovery_s: float


class Burst:
    """Every system in turn, each at shares of its own capacity.

    Args:
        plain: Requests without priority and deadline, to find the capacity.
        urgent: The same with the priorities and timeouts of `DEADLINES_MS` in turn.
    """

    name = "burst"
    method = (
        "Magika on real files, a third of the requests in each of the priorities 1, 5 and 9, with deadlines of 100, "
        f"500 and 2,000 ms. A Poisson load of {CALM} of the system's capacity, then of {BURST}, then of {CALM} again "
        "(Crayfish's pattern; its bursts are of 1.1 of a rate that is kept up with, and so none that has to wait). "
        f"Capacity: what it answers a second of {_CAPACITY_REQUESTS} requests that come at once, right before, after "
        "as many for the JVM to compile what is hot. Hit: the right answer within the deadline of the scheduled send "
        "time. Recovery: from the end of the burst until the median latency of half a second is at most twice what it "
        "was before the burst. The peers know neither priorities nor deadlines."
    )

    def __init__(self, settings: BurstSettings, plain: Workload, urgent: Workload) -> None:
        self._settings = settings
        self._plain, self._urgent = plain, urgent
        self._systems = anabranch("thread"), naive_map("thread"), CONFLUENT

    def steps(self) -> Iterator[Turn]:
        """Round by round."""
        settings = self._settings
        seconds = _TURN_S + settings.burst_seconds + 2 * settings.calm_seconds
        for repeat in range(settings.repeats):
            for system in self._systems:
                label = f"burst, round {repeat + 1}: {system.name}"
                yield Turn(label, partial(self._run, system, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Kept deadlines by priority, and recovery."""
        ours = [run for run in runs if isinstance(run, BurstRun)]
        metrics = {"rate_per_s": [run.capacity_per_s for run in ours]}
        for priority in DEADLINES_MS:
            metrics[f"hit_share_{priority}"] = [run.hit_share[f"{priority}"] for run in ours]
        metrics["recovery_s"] = [run.recovery_s for run in ours]
        return Conclusion(rows_of(ours, metrics, keys_of(ours)), [], [], {})

    def _run(self, system: System, repeat: int, environment: BenchEnvironment) -> list[BurstRun]:
        settings = self._settings
        count = settings.burst_of(_CAPACITY_REQUESTS)
        with in_service(environment, system, self._plain) as service:
            service.burst(self._plain, count)
            capacity_per_s = service.burst(self._plain, count).rate_per_s
            calm = CALM * capacity_per_s, settings.calm_seconds
            phases = calm, (BURST * capacity_per_s, settings.burst_seconds), calm
            offered = service.offer_by(self._urgent, phases_offsets_ns(phases, seed=400 + 10 * repeat))
        return [self._note(offered, system, repeat, capacity_per_s)]

    def _note(self, offered: LoadRun, system: System, repeat: int, capacity_per_s: float) -> BurstRun:
        settings, firsts = self._settings, offered.firsts
        spent_ms = (offered.answers.received_ns[firsts] - offered.scheduled_ns) / 1e6
        right = (firsts >= 0) & (offered.answers.deviation[firsts] <= offered.workload.tolerance)
        priorities = np.array([*DEADLINES_MS])[(offered.first_id + np.arange(offered.count)) % len(DEADLINES_MS)]
        at_s = (offered.scheduled_ns - offered.scheduled_ns[0]) / 1e9
        over_s = settings.calm_seconds + settings.burst_seconds
        calm, later = right & (at_s < settings.calm_seconds), right & (at_s >= over_s)
        return BurstRun(
            system=system.name,
            workload=self._urgent.name,
            repeat=repeat,
            tally=offered.tally,
            core_s_per_1000=offered.core_s_per_1000,
            other_cores=offered.other_cores,
            capacity_per_s=capacity_per_s,
            hit_share={
                f"{priority}": round(float((right & (spent_ms <= limit_ms))[priorities == priority].mean()), 4)
                for priority, limit_ms in DEADLINES_MS.items()
            },
            recovery_s=recovery_s(at_s[later] - over_s, spent_ms[later], spent_ms[calm]),
        )


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    metrics = [name for name in result.rows[0].metrics if name.startswith("hit_share_")]
    figure = Figure(figsize=(8, 1.2 + 0.7 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for number, metric in enumerate(metrics):
        places = np.arange(len(result.rows)) + (number - 1) * 0.25
        shares = [100 * row.metrics[metric].median for row in result.rows]
        axes.barh(places, shares, height=0.22, color=plots.PARTS[1:][number], label=metric.removeprefix("hit_share_"))
    plots.name_rows(axes, result.rows)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the requests answered before their deadline (median of the rounds)")
    axes.legend(frameon=False, title="priority", fontsize=8, loc="lower left", bbox_to_anchor=(1, 0))
    return figure


@scenario(Burst.name, full=BurstSettings(), quick=BurstSettings.quick(calm_seconds=2.0, burst_seconds=2.0), draw=draw)
def make(settings: BurstSettings, models: Repositories) -> Made:
    """Make the scenario."""
    small = models.small
    classes = [{"priority": priority, "timeout": limit_ms * 1000} for priority, limit_ms in DEADLINES_MS.items()]
    urgent = replace(magika_files(small, classes), name="magika, 3 classes")
    return Burst(settings, magika_files(small), urgent), small
