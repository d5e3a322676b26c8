"""Sustainable rate of each system, and latency at shares of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.analysis.measures import Percentiles, Spread
from bench.harness.analysis.rate_bisection import Probe
from bench.harness.environment import BenchEnvironment
from bench.harness.load_run import LoadRun, RunningSystem, in_service
from bench.harness.rate_search import BEFORE_PROBES, SearchSettings, bound_of, find, offer, seconds_of
from bench.report import plots
from bench.report.results import Ratio, Row, Run, ScenarioResult, Target, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.in_memory.onnx_runtime_alone import model_ms
from bench.systems.registry import CONFLUENT, System, anabranch, naive_map
from bench.workloads.repositories import Repositories
from bench.workloads.text_lines import text_lines
from bench.workloads.workload import FFNN_ROWS, Workload, ffnn_rows, magika_files, resnet_pictures

SUSTAINABLE, NO_QUEUE, COMMON = "sustainable", "no queue", "common rate"
#: Shares of a system's own sustainable rate.
SHARES = {NO_QUEUE: 0.05, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "90 %": 0.9}
OVER_NO_QUEUE = "p99 at 50 % / p50 with no queue"

_MOST_OVER_NO_QUEUE = 3.0
#: Time of a turn beside its load, and of a burst.
_TURN_S, _BURST_S = 2.0, 7.0
#: Share of a burst in each second of the warm-up.
_WARM_UP_SHARE = 0.02
#: Estimate of sustainable over common rate.
_ABOUT = 6.0


class RateRun(Run, frozen=True, kw_only=True):
    """A run at the sustainable rate or a share of it.

    Attributes:
        load: `sustainable`, or the share.
        latency: As in `LatencyRun`.
        lag: Growth of latency in seconds a second.
        generator_p99_ms: Delay of the generator.
        probes: Of the search.
    """

    load: str
    rate_per_s: float
    latency: Percentiles
    lag: float
    generator_p99_ms: float
    probes: list[Probe]


@dataclass(frozen=True)
class SustainableCase:
    """A workload and its systems.

    Attributes:
        burst: Requests of a burst, answered within seconds.
        common_per_s: A sustainable rate for all of them.
        systems: This project first.
    """

    workload: Workload
    burst: int
    common_per_s: float
    systems: tuple[System, ...]


class Sustainable:
    """Every system in turn, with all of its workloads in one go.

    Args:
        repository: Repository of all models.
    """

    name = "sustainable"
    method = (
        "Open loop, by Poisson schedules, generator and reader in processes of their own, all on the same cores. "
        "Sustainable: the highest rate, by bisection (after the first round about what the round before found), at "
        "which every request gets its one right answer, p99 is at most "
        "100 ms (or five times what the model takes for a request, if that is more), and latency does not grow by more "
        "than a hundredth of a second in a second (least-squares slope over scheduled time, less twice its error); "
        "then confirmed in a longer run. What the generator is late by is in the latency, and so a limit of quick "
        "systems' rates. Latency, from the scheduled send time, at shares of each system's own "
        "sustainable rate, and at a rate that all share. No queue: a twentieth of it. Systems in turn, each with one "
        "start for all its workloads and rates, and first a load of its first workload that is not measured: the JVMs "
        "of broker and system compile what is hot."
    )

    def __init__(self, settings: SearchSettings, cases: Sequence[SustainableCase], repository: Path) -> None:
        self._settings = settings
        self._cases = [case for case in cases if settings.wants(case.workload.name)]
        self._repository = repository
        self._ours = anabranch("thread")
        self._bounds_ms: dict[str, float] = {}
        self._found: dict[tuple[str, str], float] = {}

    def steps(self) -> Iterator[Turn]:
        """Yield the models' own times; then every system's turn, round by round."""
        yield Turn("sustainable: the models' own times", self._measure_models, 2.0 * len(self._cases))
        systems = list(dict.fromkeys(system for case in self._cases for system in case.systems))
        settings = self._settings
        probe_s = settings.search_seconds + _TURN_S
        first_s, later_s = 2 * _BURST_S + settings.search_probes * probe_s, _BURST_S + BEFORE_PROBES * probe_s
        for repeat in range(settings.repeats):
            for system in systems:
                cases = [case for case in self._cases if system in case.systems]
                label = f"sustainable, round {repeat + 1}: {system.name}"
                search_s = (later_s if repeat else first_s) + settings.load_seconds + _TURN_S
                seconds = 20 + settings.search_warm_up_seconds + sum(search_s + self._loads_s(case) for case in cases)
                yield Turn(label, partial(self._run, system, cases, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates and percentiles by load; ours over each peer's."""
        ours = [run for run in runs if isinstance(run, RateRun)]
        by_load = {
            load: [run for run in ours if run.load == load]
            for load in sorted({run.load for run in ours}, key=[SUSTAINABLE, *SHARES, COMMON].index)
        }
        rows = [row for load, chosen in by_load.items() for row in _rows(chosen, load)]
        workloads = list(dict.fromkeys(run.workload for run in ours))
        systems = list(dict.fromkeys(run.system for run in ours))
        rows.sort(key=lambda row: (workloads.index(row.workload), systems.index(row.system.rsplit(", ", 1)[0])))
        return Conclusion(rows, list(self._ratios(by_load)), self._targets(by_load), dict(self._limits()))

    def _loads_s(self, case: SustainableCase) -> float:
        rates = [share * _ABOUT * case.common_per_s for share in SHARES.values()] + [case.common_per_s]
        return sum(seconds_of(rate, self._settings.load_seconds) + _TURN_S for rate in rates)

    def _ratios(self, by_load: dict[str, list[RateRun]]) -> Iterator[Ratio]:
        best, common = by_load.get(SUSTAINABLE, []), by_load.get(COMMON, [])
        for case in self._cases:
            for peer in case.systems:
                pair = self._ours.name, peer.name, case.workload.name
                if peer == self._ours:
                    continue
                beside = ratio_of(best, [run.rate_per_s for run in best], *pair, "sustainable rate")
                tails = ratio_of(common, [run.latency.p99_ms for run in common], *pair, "p99 at the common rate")
                yield from (ratio for ratio in (beside, tails) if ratio)

    def _targets(self, by_load: dict[str, list[RateRun]]) -> list[Target]:
        targets = []
        calm = {(run.workload, run.repeat): run for run in by_load.get(NO_QUEUE, []) if run.system == self._ours.name}
        half = {(run.workload, run.repeat): run for run in by_load.get("50 %", []) if run.system == self._ours.name}
        for case in self._cases:
            pairs = [(half[key], calm[key]) for key in half if key in calm and key[0] == case.workload.name]
            if not pairs:
                continue
            value = Spread.of([loaded.latency.p99_ms / alone.latency.p50_ms for loaded, alone in pairs]).median
            clean = all(run.tally.is_clean for pair in pairs for run in pair)
            about = case.workload.name, self._ours.name, OVER_NO_QUEUE
            targets.append(target_of(*about, value, "<=", _MOST_OVER_NO_QUEUE, clean=clean))
        return targets

    def _limits(self) -> Iterator[tuple[str, float]]:
        for workload, bound_ms in self._bounds_ms.items():
            yield f"{workload}: p99 must be at most, ms", round(bound_ms, 1)

    def _measure_models(self, environment: BenchEnvironment) -> list[RateRun]:  # noqa: ARG002 - a step's
        for case in self._cases:
            spent_ms = model_ms(case.workload, self._repository)
            self._bounds_ms[case.workload.name] = bound_of(spent_ms)
        return []

    def _run(
        self, system: System, cases: Sequence[SustainableCase], repeat: int, environment: BenchEnvironment
    ) -> list[RateRun]:
        runs: list[RateRun] = []
        with in_service(environment, system, cases[0].workload) as service:
            first, seconds = cases[0], self._settings.search_warm_up_seconds
            service.offer(first.workload, first.burst * _WARM_UP_SHARE, seconds, seed=0)
            for case in cases:
                runs += self._serve(service, system, case, repeat)
        return runs

    def _serve(self, service: RunningSystem, system: System, case: SustainableCase, repeat: int) -> Iterator[RateRun]:
        key, settings = (system.name, case.workload.name), self._settings
        bound_ms = self._bounds_ms[case.workload.name]
        found = find(
            service,
            case.workload,
            case.burst,
            bound_ms,
            settings,
            before_per_s=self._found.get(key),
            seed=1_000 * (repeat + 1),
        )
        # Without a sustainable rate, the probes say why.
        best = msgspec.structs.replace(found.probes[-1], rate_per_s=found.rate_per_s)
        yield self._note(found.offered, best, system, SUSTAINABLE, repeat, found.probes)
        if not found.rate_per_s:
            return
        self._found[key] = found.rate_per_s
        rates = {load: share * found.rate_per_s for load, share in SHARES.items()} | {COMMON: case.common_per_s}
        for load, rate in rates.items():
            offered, probe = offer(service, case.workload, rate, settings.load_seconds, bound_ms, seed=100 + repeat)
            yield self._note(offered, probe, system, load, repeat, [])

    def _note(
        self, offered: LoadRun, probe: Probe, system: System, load: str, repeat: int, probes: list[Probe]
    ) -> RateRun:
        return RateRun(
            system=system.name,
            workload=offered.workload.name,
            repeat=repeat,
            tally=offered.tally,
            core_s_per_1000=offered.core_s_per_1000,
            other_cores=offered.other_cores,
            load=load,
            rate_per_s=probe.rate_per_s,
            latency=Percentiles.of(offered.latencies()[0]),
            lag=probe.lag,
            generator_p99_ms=offered.generator_p99_ms,
            probes=probes,
        )


def _rows(runs: Sequence[RateRun], load: str) -> list[Row]:
    metrics = {"rate_per_s": [run.rate_per_s for run in runs]}
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        metrics[name] = [float(getattr(run.latency, name)) for run in runs]
    metrics["generator_p99_ms"] = [run.generator_p99_ms for run in runs]
    rows = rows_of(runs, metrics, keys_of(runs))
    return [msgspec.structs.replace(row, system=f"{row.system}, {load}") for row in rows]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, RateRun)]
    workloads = list(dict.fromkeys(run.workload for run in runs))
    columns = min(2, len(workloads))
    lines = -(-len(workloads) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.9 + 2.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    panels, spare = grid[: len(workloads)], grid[len(workloads) :]
    for axes in spare:
        axes.set_axis_off()
    systems = list(dict.fromkeys(run.system for run in runs))
    for axes, workload in zip(panels, workloads, strict=True):
        for number, system in enumerate(systems):
            points = []
            for load in SHARES:
                chosen = [run for run in runs if (run.workload, run.system, run.load) == (workload, system, load)]
                if chosen:
                    values = [(run.rate_per_s, run.latency.p50_ms, run.latency.p99_ms) for run in chosen]
                    points.append(np.median(values, axis=0))
            if points:
                rates, middle, tail = np.array(points).T
                axes.plot(
                    rates, tail, "o-", color=plots.SUBJECTS[number % len(plots.SUBJECTS)], markersize=4, label=system
                )
                axes.plot(rates, middle, "o:", color=plots.SUBJECTS[number % len(plots.SUBJECTS)], markersize=3)
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter("")
        axes.set_ylabel("ms")
        axes.set_title(workload, loc="left", fontsize=11)
        axes.grid(axis="y", color=plots.FAINT, linewidth=0.6)
        plots.clean(axes)
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, ncols=3, loc="outside upper left")
    figure.supxlabel(
        "requests/s, at 5, 25, 50, 75 and 90 % of each one's sustainable rate; p99, dotted: p50", fontsize=9
    )
    return figure


@scenario(
    Sustainable.name,
    full=SearchSettings(),
    quick=SearchSettings.quick(search_warm_up_seconds=2.0, search_probes=1, search_seconds=1.0),
    draw=draw,
)
def make(settings: SearchSettings, models: Repositories) -> Made:
    """Make the scenario."""
    large, ours, naive = models.large, anabranch("thread"), naive_map("thread")
    cases = (
        SustainableCase(models.ffnn, 100_000, 200, (ours, naive, CONFLUENT)),
        SustainableCase(magika_files(large), 250, 25, (ours, CONFLUENT)),
        SustainableCase(ffnn_rows(large, FFNN_ROWS), 6_000, 100, (ours, CONFLUENT)),
        SustainableCase(resnet_pictures(large), 40, 3, (ours, CONFLUENT)),
        SustainableCase(text_lines(large), 200, 15, (ours, CONFLUENT)),
    )
    return Sustainable(settings, cases, large), large
