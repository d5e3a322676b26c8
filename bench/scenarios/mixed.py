"""All workloads at once in one job, in three priorities."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anabranch.demo.features import MODEL_NAME as MAGIKA
from bench.harness.analysis.measures import Spread, Tally
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.load_run import LoadRun, in_service
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, Target, keys_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, anabranch
from bench.workloads.docstrings import FLOATS, docstrings
from bench.workloads.mixture import SHARES, Mixture, mixture_of
from bench.workloads.models import FFNN, RESNET
from bench.workloads.pages import DETECTOR, pages
from bench.workloads.repositories import Repositories
from bench.workloads.text_lines import RECOGNIZER, text_lines
from bench.workloads.workload import FFNN_ROWS, ffnn_rows, magika_files, resnet_pictures

ALL = "all"
#: Multiples of the capacity.
CALM, SATURATED = 0.25, 1.5
#: Requests of 600 to each workload, so that none of them is all of the work.
COUNTS = {
    f"{FFNN} 1": 230,
    f"{FFNN} {FFNN_ROWS}": 60,
    MAGIKA: 120,
    f"{FLOATS} texts": 90,
    RECOGNIZER: 60,
    RESNET: 20,
    DETECTOR: 20,
}
#: Workloads whose requests take some milliseconds.
QUICK = (f"{FFNN} 1", f"{FFNN} {FFNN_ROWS}", MAGIKA, f"{FLOATS} texts")
_MOST_URGENT_MS = 100.0
_URGENT_P99 = "p99 of the urgent, ms"
_URGENT = min(SHARES)
_START_S, _LOAD_S = 20.0, 4.0


class MixedSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        mixed_flood_per_s: Requests a second that are more than any task serves.
        mixed_warm_up_seconds: Duration of such a load before the capacity is measured.
        mixed_flood_seconds: Duration of its measurement.
        mixed_seconds: Duration of each load.
    """

    mixed_flood_per_s: float = 180.0
    mixed_warm_up_seconds: float = 15.0
    mixed_flood_seconds: float = 20.0
    mixed_seconds: float = 40.0


class MixedRun(Run, frozen=True, kw_only=True):
    """Requests of one workload and priority in a mixed load.

    Attributes:
        load: Multiple of the capacity.
        priority: 0 for all.
        rate_per_s: Right answers a second.
        p50_ms: Of served requests; 0 without; likewise `p99_ms`.
    """

    load: float
    priority: int
    offered_per_s: float
    rate_per_s: float
    served_share: float
    p50_ms: float
    p99_ms: float


class Mixed:
    """This project alone, with `overload = "refuse"`: no peer knows priorities."""

    name = "mixed"
    method = (
        "One job and one task with all workloads at once: of 600 requests, in a random order, "
        f"{', '.join(f'{count} to {name}' for name, count in COUNTS.items())}; of each ten requests of a workload 1 "
        'has priority 1, 3 have 5 and 6 have 9. The job has `overload = "refuse"`. Capacity: right answers a second '
        "under an open-loop Poisson load of more than it serves, after the same load has warmed the JVM up. Then such "
        f"loads of {CALM:g} and of {SATURATED:g} times the capacity. Latency of what was served, from the scheduled "
        "send time. Every request must get its right answer or the error `overloaded`, once."
    )

    def __init__(self, settings: MixedSettings, mixture: Mixture) -> None:
        self._settings = settings
        self._mixture = mixture
        self._systems = [anabranch(mode) for mode in settings.modes]
        self._capacities: dict[str, float] = {}

    def steps(self) -> Iterator[Turn]:
        """Each mode, round by round."""
        settings = self._settings
        flood_s = settings.mixed_warm_up_seconds + settings.mixed_flood_seconds
        seconds = _START_S + flood_s + 2 * settings.mixed_seconds + 4 * _LOAD_S
        for repeat in range(settings.repeats):
            for system in self._systems:
                label = f"mixed, round {repeat + 1}: {system.name}"
                yield Turn(label, partial(self._run, system, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Latency by workload and priority, and the urgent ones' limit."""
        ours = [run for run in runs if isinstance(run, MixedRun)]
        metrics = {
            "rate_per_s": [run.rate_per_s for run in ours],
            "served_share": [run.served_share for run in ours],
            "p50_ms": [run.p50_ms for run in ours],
            "p99_ms": [run.p99_ms for run in ours],
        }
        rows = rows_of(ours, metrics, keys_of(ours))
        limits = {f"{name}: capacity, requests/s": round(rate, 1) for name, rate in self._capacities.items()}
        return Conclusion(rows, [], list(self._targets(ours)), limits)

    def _targets(self, runs: Sequence[MixedRun]) -> Iterator[Target]:
        for system in self._systems:
            for workload in QUICK:
                name = _name(system, SATURATED, _URGENT)
                chosen = [run for run in runs if (run.system, run.workload) == (name, workload)]
                if chosen:
                    clean = all(run.tally.is_clean and run.served_share for run in chosen)
                    p99_ms = Spread.of([run.p99_ms for run in chosen]).median
                    yield target_of(workload, name, _URGENT_P99, p99_ms, "<=", _MOST_URGENT_MS, clean=clean)

    def _run(self, system: System, repeat: int, environment: BenchEnvironment) -> list[MixedRun]:
        settings, workload = self._settings, self._mixture.workload
        runs: list[MixedRun] = []
        with in_service(environment, replace(system, overload="refuse"), workload) as service:
            for seconds in (settings.mixed_warm_up_seconds, settings.mixed_flood_seconds):
                offered = service.offer(workload, settings.mixed_flood_per_s, seconds, seed=repeat)
            flooded = next(self.runs_of(offered, system, 0.0, repeat))
            if not flooded.rate_per_s:
                raise Stalled("no request was served")
            self._capacities[system.name] = flooded.rate_per_s
            for load in (CALM, SATURATED):
                rate = load * flooded.rate_per_s
                offered = service.offer(workload, rate, settings.mixed_seconds, seed=600 + repeat)
                runs += self.runs_of(offered, system, load, repeat)
        return runs

    def runs_of(self, offered: LoadRun, system: System, load: float, repeat: int) -> Iterator[MixedRun]:
        """Yield what all requests of a load got, and then those of each workload and priority."""
        mixture = self._mixture
        slots = (offered.first_id + np.arange(offered.count)) % len(mixture.parts)
        parts, priorities = mixture.parts[slots], mixture.priorities[slots]
        everyone = np.ones(offered.count, bool)
        yield _note(offered, everyone, ALL, mixture.workload.tolerance, _name(system, load), load, 0, repeat)
        for part, workload in enumerate(mixture.workloads):
            for priority in SHARES:
                chosen = (parts == part) & (priorities == priority)
                name = _name(system, load, priority)
                yield _note(offered, chosen, workload.name, workload.tolerance, name, load, priority, repeat)


def _name(system: System, load: float, priority: int = 0) -> str:
    of_priority = f", priority {priority}" if priority else ""
    return f"{system.name}, {load:g} x capacity{of_priority}"


def _note(
    offered: LoadRun,
    chosen: npt.NDArray[np.bool_],
    workload: str,
    tolerance: float,
    system: str,
    load: float,
    priority: int,
    repeat: int,
) -> MixedRun:
    answers, firsts = offered.answers, offered.firsts
    asked = int(chosen.sum())
    places = np.flatnonzero(chosen & (firsts >= 0))
    found = firsts[places]
    refused, expired = answers.refused[found], answers.expired[found]
    right = answers.deviation[found] <= tolerance
    numbers = answers.ids - offered.first_id
    known = numbers[(numbers >= 0) & (numbers < offered.count)]
    tally = Tally(
        requests=asked,
        answered=len(found),
        missing=asked - len(found),
        wrong=int((~right & ~refused & ~expired).sum()),
        repeated=int(chosen[known].sum()) - len(found),
        deviation=float(answers.deviation[found][right].max(initial=0.0)),
        refused=int(refused.sum()),
        expired=int(expired.sum()),
    )
    served = places[right]
    spent_ms = (answers.received_ns[firsts[served]] - offered.scheduled_ns[served]) / 1e6
    span_s = float(offered.scheduled_ns[-1] - offered.scheduled_ns[0]) / 1e9
    p50_ms, p99_ms = np.percentile(spent_ms, [50, 99]) if len(spent_ms) else (0.0, 0.0)
    return MixedRun(
        system=system,
        workload=workload,
        repeat=repeat,
        tally=tally,
        core_s_per_1000={} if priority else offered.core_s_per_1000,
        other_cores=offered.other_cores,
        load=load,
        priority=priority,
        offered_per_s=round(asked / span_s, 2),
        rate_per_s=round(len(served) / span_s, 2),
        served_share=round(len(served) / max(asked, 1), 4),
        p50_ms=round(float(p50_ms), 2),
        p99_ms=round(float(p99_ms), 2),
    )


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, MixedRun) and run.priority and run.p99_ms]
    loads = sorted({run.load for run in runs})
    workloads = list(dict.fromkeys(run.workload for run in runs))
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(workloads)), layout="constrained")
    panels = figure.subplots(1, len(loads), sharex=True, sharey=True, squeeze=False)[0]
    for axes, load in zip(panels, loads, strict=True):
        for number, priority in enumerate(SHARES):
            colour = plots.PARTS[1:][number]
            for place, workload in enumerate(workloads):
                chosen = [r for r in runs if (r.load, r.priority, r.workload) == (load, priority, workload)]
                if chosen:
                    ends = [np.median([getattr(run, name) for run in chosen]) for name in ("p50_ms", "p99_ms")]
                    height = place + (number - 1) * 0.25
                    axes.plot(ends, [height, height], "-", color=colour, linewidth=1.5)
                    axes.plot(ends[1], height, "s", color=colour, markersize=4)
            axes.plot([], [], "s-", color=colour, label=f"{priority}")
        axes.axvline(_MOST_URGENT_MS, color=plots.TARGET, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{load:g} x capacity", loc="left", fontsize=11)
        axes.set_yticks(range(len(workloads)), workloads)
        plots.clean(axes)
    panels[0].set_ylim(len(workloads) - 0.4, -0.7)
    panels[0].legend(frameon=False, title="priority", fontsize=8)
    figure.supxlabel("latency of what was served, ms: from p50 to p99 (square), all modes", fontsize=9)
    return figure


@scenario(
    Mixed.name,
    full=MixedSettings(modes=("thread", "process"), repeats=1),
    quick=MixedSettings.quick(mixed_warm_up_seconds=2.0, mixed_flood_seconds=4.0, mixed_seconds=4.0),
    draw=draw,
)
def make(settings: MixedSettings, models: Repositories) -> Made:
    """Make the scenario."""
    repository = models.mixed
    workloads = [
        ffnn_rows(repository),
        ffnn_rows(repository, FFNN_ROWS),
        magika_files(repository),
        docstrings(repository, FLOATS, COUNTS[f"{FLOATS} texts"])[0],
        text_lines(repository),
        resnet_pictures(repository),
        pages(repository),
    ]
    return Mixed(settings, mixture_of(COUNTS, workloads)), repository
