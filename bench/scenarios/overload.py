"""Overload: Magika in three priorities at twice and three times the capacity."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from time import monotonic

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import Floats, first_answers, tally
from bench.harness.environment import BenchEnvironment, Stalled, Topics
from bench.harness.memory_sampler import Sampler
from bench.harness.preloaded import Preloaded
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Relation, Run, ScenarioResult, Target, keys_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import anabranch
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, magika_files

#: Requests of 60 with each priority.
SHARES = {1: 6, 5: 18, 9: 36}
#: Priorities of the requests in turn, shuffled.
PRIORITIES = tuple(
    np.random.default_rng(1)
    .permutation([priority for priority, count in SHARES.items() for _ in range(count)])
    .tolist()
)
CALM, DOUBLE, TRIPLE = 0.25, 2.0, 3.0
#: Time of a start, and an estimate of the rate.
_START_S, _ABOUT_PER_S = 16.0, 150.0
_TAIL = "p99 of priority 1 / unloaded"
_GOODPUT, _DRAIN = "goodput / peak", "drain after the load, s"
_GROWTH = "most memory in the last fifth / in the second"
_MOST_DRAIN_S = 5.0
_NOBODY = 1e6
_FIFTHS = 5


class OverloadSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        overload_warm_up: Requests before the peak, and before each job's loads.
        overload_peak_requests: Requests that measure the peak.
        overload_seconds: Duration of each load.
        overload_long_seconds: Duration of the last one.
    """

    overload_warm_up: int = 12_000
    overload_peak_requests: int = 4_000
    overload_seconds: float = 20.0
    overload_long_seconds: float = 300.0


class OverloadRun(Run, frozen=True, kw_only=True):
    """A load of a multiple of the peak, in several priorities.

    Attributes:
        load: Multiple of the peak.
        peak_per_s: Rate at full speed.
        goodput_per_s: Right answers a second; `goodput_by_fifth_per_s` in each fifth.
        refused: Answers `overloaded`.
        served_share: By priority.
        p50_ms: By priority, of served requests; likewise `p99_ms`.
        drain_s: From the last request to the last answer.
        peak_mb: Maximum of `resident_mb`.
    """

    load: float
    seconds: float
    offered_per_s: float
    peak_per_s: float
    goodput_per_s: float
    goodput_by_fifth_per_s: list[float]
    refused: int
    served_share: dict[str, float]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]
    drain_s: float
    peak_mb: float
    resident_mb: list[float]


class Overload:
    """This project alone, with `overload = "refuse"`: no peer refuses by urgency."""

    name = "overload"
    method = (
        "Magika on real files; of 60 requests 6 have priority 1, 18 have 5 and 36 have 9 (ADR 0008 says what other "
        "mixes allow). Peak: requests that were there before, answered as fast as possible, after as many as make the "
        'JVM warm. Then, with `overload = "refuse"`, an open-loop Poisson load of a quarter and of twice that peak, in '
        "turn; and, for long, of three times it. Jobs are warmed up by twice the peak, for a JVM that compiles what "
        "refuses takes both cores from the urgent, some tenths of a second at a time, for most of a minute. "
        "Goodput: right answers a second while the load lasts, median of its five fifths. Every request must get its "
        "right answer or the error `overloaded`, once. Drain: from the last request to the last answer. Latency as in "
        "the latency scenario, of what was served."
    )

    def __init__(self, settings: OverloadSettings, magika: Workload) -> None:
        self._settings = settings
        self._workload = magika
        self._waiting = anabranch(settings.modes[0])
        self._refusing = replace(self._waiting, overload="refuse")
        self._peak_per_s: float | None = None

    def steps(self) -> Iterator[Turn]:
        """Yield the peak, the rounds, the long load."""
        settings = self._settings
        warm_s = _START_S + settings.overload_warm_up / _ABOUT_PER_S
        peak_s = warm_s + settings.overload_peak_requests / _ABOUT_PER_S
        yield Turn("overload: the peak", self._find_peak, peak_s)
        rounds = [(load, repeat) for repeat in range(settings.repeats) for load in (CALM, DOUBLE)]
        label = f"overload: a quarter and twice the peak, {settings.repeats} times"
        seconds = warm_s + len(rounds) * (settings.overload_seconds + 4)
        yield Turn(label, partial(self._run, rounds, settings.overload_seconds), seconds)
        seconds = warm_s + settings.overload_long_seconds + 10
        label = "overload: three times the peak, for long"
        yield Turn(label, partial(self._run, [(TRIPLE, 0)], settings.overload_long_seconds), seconds)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Goodput beside peak, and the urgent beside themselves without load."""
        ours = [run for run in runs if isinstance(run, OverloadRun)]
        metrics = {
            "rate_per_s": [run.goodput_per_s for run in ours],
            **{f"p99_ms_{priority}": [run.p99_ms.get(f"{priority}", 0.0) for run in ours] for priority in SHARES},
            "served_share_1": [run.served_share["1"] for run in ours],
            "refused_share": [run.refused / run.tally.requests for run in ours],
            "drain_s": [run.drain_s for run in ours],
            "peak_mb": [run.peak_mb for run in ours],
        }
        return Conclusion(rows_of(ours, metrics, keys_of(ours)), [], list(self._targets(ours)), {})

    def _targets(self, runs: Sequence[OverloadRun]) -> Iterator[Target]:
        calm = {run.repeat: run for run in runs if run.load == CALM}
        pairs = [(run, calm[run.repeat]) for run in runs if run.load == DOUBLE and run.repeat in calm]
        if pairs:
            value = median(_tail(loaded, alone) for loaded, alone in pairs)
            yield _target([run for pair in pairs for run in pair], _TAIL, value, "<=", 2.0)
        for run in runs:
            if run.load == TRIPLE:
                yield _target([run], _GOODPUT, median(run.goodput_by_fifth_per_s) / run.peak_per_s, ">=", 0.9)
                yield _target([run], _DRAIN, run.drain_s, "<=", _MOST_DRAIN_S)
                yield _target([run], _GROWTH, growth_of(run.resident_mb), "<=", 1.1)

    def _run(
        self, loads: Sequence[tuple[float, int]], seconds: float, environment: BenchEnvironment
    ) -> list[OverloadRun]:
        if self._peak_per_s is None:
            raise Stalled("the peak was not found")
        topics, runs, sent = environment.topics(), [], 1
        warm_up = DOUBLE, 0, self._settings.overload_warm_up / self._peak_per_s
        with environment.serving(self._refusing, topics) as process:
            environment.send(topics.requests, self._workload, 1, 0, None)
            environment.await_answers(topics.responses, 1, process)
            for load, repeat, lasts_s in (warm_up, *((*each, seconds) for each in loads)):
                run = self._offer(environment, topics, process, sent, load, lasts_s, self._peak_per_s, repeat)
                sent += run.tally.requests
                runs.append(run)
        environment.drop(topics.requests, topics.responses, topics.errors)
        return runs[1:]

    def _find_peak(self, environment: BenchEnvironment) -> list[OverloadRun]:
        settings = self._settings
        requests = Preloaded(self._workload, settings.overload_peak_requests, settings.overload_warm_up)
        self._peak_per_s = requests.serve(self._waiting, 0, environment).rate_per_s
        requests.drop(environment)
        return []

    def _offer(
        self,
        environment: BenchEnvironment,
        topics: Topics,
        process: LocalProcess,
        first_id: int,
        load: float,
        seconds: float,
        peak_per_s: float,
        repeat: int,
    ) -> OverloadRun:
        rate = load * peak_per_s
        count = round(rate * seconds)
        account = environment.account(process)
        with (
            environment.reading(
                topics.responses, self._workload, count, environment.end_offsets(topics.responses)
            ) as reader,
            Sampler(environment, process, topics.responses, first_id) as sampler,
        ):
            before = account.look()
            scheduled_ns = environment.send(
                topics.requests, self._workload, count, first_id, rate, seed=round(load * 100) + repeat
            )
            sent_s = monotonic()
            environment.await_answers(topics.responses, first_id + count, process)
            drain_s = monotonic() - sent_s
            after = account.look()
            answers = reader.finish()
        firsts = first_answers(answers, first_id, count)
        there = firsts >= 0
        refused, received_ns = np.zeros(count, bool), np.zeros(count, np.int64)
        refused[there] = answers.refused[firsts[there]]
        received_ns[there] = answers.received_ns[firsts[there]]
        served = there & ~refused
        spent_ms: Floats = (received_ns - scheduled_ns) / 1e6
        in_time = served & (received_ns <= scheduled_ns[-1])
        priorities = np.array(PRIORITIES)[(first_id + np.arange(count)) % len(PRIORITIES)]
        by_class = {priority: priorities == priority for priority in SHARES}
        span_s = float(scheduled_ns[-1] - scheduled_ns[0]) / 1e9
        return OverloadRun(
            system=f"{self._refusing.name}, {load:g} x peak",
            workload=f"{self._workload.name}, 3 priorities",
            repeat=repeat,
            tally=tally(answers, first_id, count, self._workload.tolerance),
            core_s_per_1000=core_s_per_1000(before, after, count),
            other_cores=other_cores(before, after),
            load=load,
            seconds=seconds,
            offered_per_s=round(count / span_s, 1),
            peak_per_s=round(float(peak_per_s), 1),
            goodput_per_s=round(float(in_time.sum() / span_s), 1),
            goodput_by_fifth_per_s=by_fifth(received_ns[in_time] - scheduled_ns[0], span_s),
            refused=int(refused.sum()),
            served_share={f"{name}": round(float(served[mask].mean()), 4) for name, mask in by_class.items()},
            p50_ms={f"{name}": _percentile(spent_ms[mask & served], 50) for name, mask in by_class.items()},
            p99_ms={f"{name}": _percentile(spent_ms[mask & served], 99) for name, mask in by_class.items()},
            drain_s=round(drain_s, 2),
            peak_mb=round(max(sampler.resident_mb), 1),
            resident_mb=[round(value, 1) for value in sampler.resident_mb],
        )


def _tail(loaded: OverloadRun, alone: OverloadRun) -> float:
    """Return the p99 of the urgent over theirs without load; where none of them was served, no limit lets it pass."""
    if not (loaded.served_share["1"] and alone.served_share["1"]):
        return _NOBODY
    return loaded.p99_ms["1"] / alone.p99_ms["1"]


def _percentile(values_ms: Floats, percentile: float) -> float:
    return round(float(np.percentile(values_ms, percentile)), 2) if len(values_ms) else 0.0


def by_fifth(answered_ns: npt.NDArray[np.int64], span_s: float) -> list[float]:
    """Answers a second in each fifth of a load, of answers that came so long after its start."""
    counts, _ = np.histogram(answered_ns / 1e9, bins=_FIFTHS, range=(0, span_s))
    return [round(float(count) * _FIFTHS / span_s, 1) for count in counts]


def growth_of(resident_mb: Sequence[float]) -> float:
    """Return the most memory in the last fifth of the samples over the most in the second fifth."""
    size = max(1, len(resident_mb) // _FIFTHS)
    return max(resident_mb[-size:]) / max(resident_mb[size : 2 * size] or resident_mb[:1])


def _target(runs: Sequence[OverloadRun], metric: str, value: float, relation: Relation, limit: float) -> Target:
    clean = all(run.tally.is_clean for run in runs)
    return target_of(runs[0].workload, runs[0].system, metric, value, relation, limit, clean=clean)


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, OverloadRun)]
    by_load = [[run for run in runs if run.load == load] for load in sorted({run.load for run in runs})]
    names = [f"{same[0].load:g} x" for same in by_load]
    offered, served = (
        [float(np.median([getattr(run, name) for run in same])) for same in by_load]
        for name in ("offered_per_s", "goodput_per_s")
    )
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rates, tails = figure.subplots(1, 2)
    rates.bar(names, offered, color=plots.FAINT, label="offered")
    rates.bar(names, served, color=plots.OURS, width=0.5, label="served")
    rates.axhline(runs[0].peak_per_s, color=plots.TARGET, linewidth=1, linestyle=":", label="peak")
    rates.set_ylabel("requests/s")
    rates.legend(frameon=False)
    for number, priority in enumerate(runs[0].p99_ms):
        medians = [np.median([run.p99_ms[priority] for run in same]) for same in by_load]
        tails.plot(names, medians, "o-", color=plots.PARTS[1:][number], label=priority)
    tails.set_yscale("log")
    tails.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    tails.set_ylabel("p99 latency of what was served, ms")
    tails.legend(frameon=False, title="priority")
    for axes in (rates, tails):
        axes.set_xlabel("offered load, as a multiple of the peak")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@scenario(
    Overload.name,
    full=OverloadSettings(),
    quick=OverloadSettings.quick(
        overload_warm_up=100, overload_peak_requests=200, overload_seconds=3.0, overload_long_seconds=5.0
    ),
    draw=draw,
)
def make(settings: OverloadSettings, models: Repositories) -> Made:
    """Make the scenario."""
    magika = magika_files(models.small, [{"priority": priority} for priority in PRIORITIES])
    return Overload(settings, magika), models.small
