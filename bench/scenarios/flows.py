"""Events that get a score: this project's flows and `infer`, beside programs that a user writes by hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.analysis.rounds import Comparison, Rounds
from bench.harness.environment import BenchEnvironment
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, scoring_events
from bench.workloads.events import EventFormat, payments
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

_METRIC = "rate_per_s"
_JOB, _MAP = "anabranch", "PyFlink map"
_INFER, _INFER_FIELDS = "infer in a PyFlink job", "infer of fields in a PyFlink job"
_WORKER, _SELDOM = "event worker", "event worker, commits seldom"
#: The size at which systems are compared; the others show the cost by size.
_SIZE_BYTES = 1_000
_OTHER_SIZES_BYTES = (200, 10_000)
#: Targets, as ratios of this project's job to peers, and of `infer` to the job.
_MAP_LEAST, _WORKER_LEAST, _INFER_LEAST = 2.0, 1.0, 0.9
#: Share of the events for a worker, which starts warm, and for events in Avro, which are slow.
_FEWER = 0.25
#: Of the events of 10 KB.
_LARGE_SHARE = 0.1
_START_S, _EVENTS_PER_S = 12.0, 40_000


class FlowSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        flow_events: Measured events of 1 KB; fewer if they are larger.
        flow_warm_up: Events before these. Java compiles for 10 s at full speed.
        least_rounds: Rounds of all systems; `repeats` is for those whose targets are still open.
        half_width: See `bench.harness.analysis.rounds`.
    """

    repeats: int = 4
    flow_events: int = 200_000
    flow_warm_up: int = 1_000_000
    least_rounds: int = 2
    half_width: float = 0.05


@dataclass(frozen=True)
class _Case:
    system: System
    workload: Workload
    rounds: int


class FlowsBench:
    """Every system in turn, on the same records of the same topics."""

    name = "flows"
    method = (
        "Payments in JSON and Avro, all in the topic before a system starts; a network of 3-32-32-2 takes three "
        "fields (one of them nested), and the event leaves with its score. Every outgoing event is compared: the "
        "score with a direct run of ONNX Runtime, all other fields with the incoming event. The PyFlink map decodes "
        "an event (orjson, or fastavro), runs a row, adds the score and encodes; the worker does it for micro-batches "
        "of up to 500 events (confluent-kafka), with one session call, and commits once a batch is delivered, or, as "
        "the other one, every 10 s, as the jobs make checkpoints. `infer` is this project's function in a PyFlink job "
        "with Flink's own source and sink, whose Kafka clients have our job's settings; its ratio is to the job. Its "
        "user's functions have msgspec leave most of an event undecoded, as flows do; with fields it takes those that "
        "the job's flow names. Rate = events after "
        "warm-up / time between the first and last LogAppendTime; one task. Avro without schema numbers. Median of "
        "rounds in turn; ratios are taken round by round, with 95 % intervals of the mean, and rounds go on until "
        "each interval is on one side of its target or within 5 %. Workers and Avro get a quarter of the events; "
        "those of 10 KB are a tenth."
    )

    def __init__(self, settings: FlowSettings, workloads: Sequence[tuple[EventFormat, int, Workload]]) -> None:
        self._settings = settings
        self._cases: list[_Case] = []
        comparisons = []
        for form, size_bytes, workload in workloads:
            is_main = size_bytes == _SIZE_BYTES
            kinds = (_JOB, _MAP, _INFER, _INFER_FIELDS) if is_main and form == "json" else (_JOB, _MAP)
            by_mode = {
                mode: [scoring_events(kind, form, mode) for kind in kinds]
                for mode in (settings.modes if is_main else settings.modes[:1])
            }
            workers = [scoring_events(kind, form) for kind in _workers_of(form, is_main=is_main)]
            systems = [*workers, *(system for systems in by_mode.values() for system in systems)]
            rounds = settings.repeats if is_main else min(settings.repeats, settings.least_rounds - 1)
            self._cases += [_Case(system, workload, max(1, rounds)) for system in systems]
            for job, peer, *infer in by_mode.values():
                comparisons.append(Comparison(workload.name, job.name, peer.name, _MAP_LEAST if is_main else None))
                comparisons += [
                    Comparison(workload.name, job.name, worker.name, self._limit_of(job, worker, is_main=is_main))
                    for worker in workers
                ]
                comparisons += [Comparison(workload.name, each.name, job.name, _INFER_LEAST) for each in infer]
        self._comparisons = comparisons
        self._rounds = Rounds(comparisons, settings.least_rounds, settings.half_width)
        self._preloaded: dict[tuple[str, float], Preloaded] = {}

    def _limit_of(self, job: System, worker: System, *, is_main: bool) -> float | None:
        is_default = job.mode == self._settings.modes[0]
        return _WORKER_LEAST if is_main and is_default and worker.kind == _WORKER else None

    def steps(self) -> Iterator[Turn]:
        """All systems, then again for the next round."""
        settings = self._settings
        # The broker's Java must be warm for the first one, too.
        warm = self._cases[0]
        yield Turn("flows: warm-up of the broker", partial(self._warm_up, warm), self._seconds_of(warm))
        for repeat in range(settings.repeats):
            for case in self._cases:
                if repeat < case.rounds:
                    label = f"flows, round {repeat + 1}: {case.workload.name}, {case.system.name}"
                    yield Turn(label, partial(self._run, case, repeat), self._seconds_of(case), repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates, and ratios with their targets."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        rows = rows_of(ours, {_METRIC: rates}, keys_of(ours))
        wrong = {(row.workload, row.system): row.not_answered_right for row in rows}
        ratios, targets = [], []
        for each in self._comparisons:
            ratio = ratio_of(ours, rates, each.system, each.peer, each.workload, _METRIC)
            if ratio is None:
                continue
            ratios.append(ratio)
            if each.limit is not None:
                clean = not wrong[each.workload, each.system]
                about = each.workload, each.system, f"rate / {each.peer}"
                targets.append(target_of(*about, ratio.ratio.median, ">=", each.limit, clean=clean))
        return Conclusion(rows, ratios, targets, {})

    def _warm_up(self, case: _Case, environment: BenchEnvironment) -> list[ThroughputRun]:
        self._preload(case).serve(case.system, 0, environment)
        return []

    def _run(self, case: _Case, repeat: int, environment: BenchEnvironment) -> list[ThroughputRun]:
        workload, system = case.workload.name, case.system.name
        if not self._rounds.needs(workload, system, repeat):
            return []
        run = self._preload(case).serve(case.system, repeat, environment)
        self._rounds.note(workload, system, repeat, run.rate_per_s)
        return [run]

    def _seconds_of(self, case: _Case) -> float:
        return _START_S + _share_of(case) * (self._settings.flow_events + self._settings.flow_warm_up) / _EVENTS_PER_S

    def _preload(self, case: _Case) -> Preloaded:
        workload, share = case.workload, _share_of(case)
        key = workload.name, share
        if key not in self._preloaded:
            events, warm_up = self._settings.flow_events, self._settings.flow_warm_up
            self._preloaded[key] = Preloaded(workload, round(events * share), round(warm_up * share))
        return self._preloaded[key]


def _share_of(case: _Case) -> float:
    """Return a system's share of the events."""
    has_fewer = not case.system.mode or case.workload.wire == "avro"
    of_size = min(1.0, max(_LARGE_SHARE, _SIZE_BYTES / case.workload.message_bytes))
    return (_FEWER if has_fewer else 1.0) * of_size


def _workers_of(form: EventFormat, *, is_main: bool) -> tuple[str, ...]:
    if not is_main:
        return (_SELDOM,)
    return (_WORKER, _SELDOM) if form == "json" else (_WORKER,)


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    main = [row for row in result.rows if row.workload.endswith(f" {_SIZE_BYTES / 1000:g} KB")]
    figure = Figure(figsize=(10, 1.6 + 0.32 * len(main)), layout="constrained")
    rates, costs = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(main):
        rate = row.metrics[_METRIC]
        rates.barh(place, rate.median, color=plots.colour(row), height=0.6)
        rates.plot([rate.low, rate.high], [place, place], color=plots.INK, linewidth=1.5)
        rates.text(rate.high, place, f"  {rate.median:,.0f}", va="center", fontsize=9)
    plots.name_rows(rates, main)
    rates.set_yticks(range(len(main)), [f"{row.workload.split()[0]}: {row.system}" for row in main])
    rates.set_xlim(0, 1.18 * max(row.metrics[_METRIC].high for row in main))
    rates.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    rates.set_xlabel("events of 1 KB a second (median; line: range)")
    by_system: dict[str, list[tuple[float, float]]] = {}
    for row in result.rows:
        form, size, _ = row.workload.split()
        if form == "JSON":
            core_us = 1000 * sum(spent for part, spent in row.core_s_per_1000.items() if part.startswith("system"))
            by_system.setdefault(row.system, []).append((float(size), core_us))
    for number, (system, points) in enumerate(by_system.items()):
        if len(points) > 1:
            costs.plot(
                *zip(*sorted(points), strict=True),
                "o-",
                color=plots.SUBJECTS[number % len(plots.SUBJECTS)],
                label=system,
            )
    costs.set_xscale("log")
    costs.set_yscale("log")
    costs.set_xlabel("KB of a JSON event")
    costs.set_ylabel("core-µs of the system for an event")
    costs.legend(frameon=False, fontsize=8)
    plots.clean(costs)
    return figure


@scenario(
    FlowsBench.name,
    full=FlowSettings(modes=("thread", "process")),
    quick=FlowSettings.quick(modes=("thread",), flow_events=20_000, flow_warm_up=20_000, least_rounds=1),
    draw=draw,
)
def make(settings: FlowSettings, models: Repositories) -> Made:
    """Make the scenario."""
    sizes: list[tuple[EventFormat, int]] = [("json", _SIZE_BYTES), ("avro", _SIZE_BYTES)]
    sizes += [("json", size_bytes) for size_bytes in _OTHER_SIZES_BYTES]
    workloads = [(form, size_bytes, payments(models.fraud, form, size_bytes)) for form, size_bytes in sizes]
    return FlowsBench(settings, workloads), models.fraud
