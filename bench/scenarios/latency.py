"""Latency at a fixed rate: the feed-forward network at 200 requests/s, Magika on real files at 50."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import Percentiles, append_latencies_ms, latencies_ms, tally
from bench.harness.environment import BenchEnvironment, Stalled, Topics
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.in_memory.onnx_runtime_alone import model_ms
from bench.systems.registry import CONFLUENT, System, anabranch, naive_map
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, magika_files

#: Targets beside the model's own time.
_P50_MS, _P99_MS = 4.0, 20.0
_MAGIKA_P99_MS = 60.0
_MODEL_TIMES, _MODEL_STEP_S = 3, 8.0
_MARKS = {"p50_ms": "o", "p95_ms": "D", "p99_ms": "s"}
_METRICS = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")


class LatencySettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        latency_seconds: Duration of each latency run.
        latency_warm_up_seconds: Duration of the load before it, at a higher rate.
        latency_tasks: Parallelism of the Flink systems.
    """

    latency_seconds: float = 15.0
    latency_warm_up_seconds: float = 15.0
    latency_tasks: int = 1


class LatencyRun(Run, frozen=True, kw_only=True):
    """Latency at a fixed rate, by an open-loop schedule.

    Attributes:
        latency: From the scheduled send time to the reader.
        append_latency: The same to the answer's LogAppendTime.
    """

    rate_per_s: float
    seconds: float
    latency: Percentiles
    append_latency: Percentiles


@dataclass(frozen=True)
class LatencyOffer:
    """A workload and its rate.

    Attributes:
        warm_up_rate_per_s: Rate before the measurement.
        p99_ms: Limit of p99; None for `_P99_MS` beside the model's time.
    """

    workload: Workload
    rate_per_s: float
    warm_up_rate_per_s: float
    p99_ms: float | None = None


class Latency:
    """Every system in turn, at the same rates, by the same schedules.

    Args:
        repository: Repository of both models.
    """

    name = "latency"
    method = (
        "Open loop: a generator process sends by a Poisson schedule that is fixed before the run (the same for every "
        "system of a round). latency = when a reader process had the answer - scheduled send time; append_latency "
        "ends at the answer's LogAppendTime instead. All clocks are the machine's wall clock. Each answer is compared "
        "with a direct run of the model. Median of the rounds, systems in turn. Limits: for p50 "
        f"{_P50_MS:g} ms, for p99 {_P99_MS:g} ms, both beside what ONNX Runtime alone takes for a request on one "
        f"thread, the quickest of {_MODEL_TIMES} seconds; but {_MAGIKA_P99_MS:g} ms, all in all, for Magika's p99: at "
        "its rate requests now and then wait for those before them, each for as long as the model takes."
    )

    def __init__(self, settings: LatencySettings, ffnn: Workload, magika: Workload, repository: Path) -> None:
        self._settings = settings
        self._offers = (LatencyOffer(ffnn, 200, 800), LatencyOffer(magika, 50, 60, _MAGIKA_P99_MS))
        self._repository = repository
        self._model_ms: dict[str, float] = {}
        modes, tasks = settings.modes, settings.latency_tasks
        self._ours = [anabranch(mode, tasks) for mode in modes]
        self._naive = [naive_map(mode, tasks) for mode in modes]

    def steps(self) -> Iterator[Turn]:
        """Yield the models' own times; then each round: ours, naive, the confluent-kafka worker."""
        yield Turn("latency: the models' own times", self._measure_models, _MODEL_STEP_S)
        settings = self._settings
        seconds = 15 + len(self._offers) * (settings.latency_warm_up_seconds + settings.latency_seconds + 6)
        for repeat in range(settings.repeats):
            for system in (*_zip(self._ours, self._naive), CONFLUENT):
                label = f"latency, round {repeat + 1}: {system.name}"
                yield Turn(label, partial(self._run, system, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Percentiles, ratios to the peers, and targets."""
        ours = [run for run in runs if isinstance(run, LatencyRun)]
        metrics = {name: [float(getattr(run.latency, name)) for run in ours] for name in _METRICS}
        rows = rows_of(ours, metrics, sorted(keys_of(ours), key=lambda key: key[1]))
        ratios = [
            ratio_of(ours, metrics[metric], system.name, peer.name, offer.workload.name, metric)
            for offer in self._offers
            for system, naive in zip(self._ours, self._naive, strict=True)
            for peer in (naive, CONFLUENT)
            for metric in ("p50_ms", "p99_ms")
        ]
        targets = [
            row.target(metric, "<=", limit)
            for offer in self._offers
            for row in rows
            if row.system == self._ours[0].name and row.workload == offer.workload.name
            for metric, limit in self._limits_ms(offer)
        ]
        times = {f"{name}: ONNX Runtime alone, 1 thread, ms": spent_ms for name, spent_ms in self._model_ms.items()}
        return Conclusion(rows, [ratio for ratio in ratios if ratio], targets, times)

    def _limits_ms(self, offer: LatencyOffer) -> Iterator[tuple[str, float]]:
        spent_ms = self._model_ms.get(offer.workload.name, 0.0)
        yield "p50_ms", round(_P50_MS + spent_ms, 3)
        yield "p99_ms", offer.p99_ms or round(_P99_MS + spent_ms, 3)

    def _measure_models(self, environment: BenchEnvironment) -> list[LatencyRun]:  # noqa: ARG002 - a step's
        for offer in self._offers:
            # The quickest: a busy machine must not make a target easier.
            spent_ms = min(model_ms(offer.workload, self._repository) for _ in range(_MODEL_TIMES))
            self._model_ms[offer.workload.name] = round(spent_ms, 3)
        return []

    def _run(self, system: System, repeat: int, environment: BenchEnvironment) -> list[LatencyRun]:
        topics = environment.topics()
        with environment.serving(system, topics) as process:
            sent = 1
            environment.send(topics.requests, self._offers[0].workload, sent, 0, None)
            environment.await_answers(topics.responses, sent, process)
            runs = []
            for offer in self._offers:
                warm_up = round(offer.warm_up_rate_per_s * self._settings.latency_warm_up_seconds)
                environment.send(topics.requests, offer.workload, warm_up, sent, offer.warm_up_rate_per_s, seed=repeat)
                sent += warm_up
                environment.await_answers(topics.responses, sent, process)
                runs.append(self._offer(offer, environment, topics, process, sent, system.name, repeat))
                sent += runs[-1].tally.requests
        environment.drop(topics.requests, topics.responses, topics.errors)
        return runs

    def _offer(
        self,
        offer: LatencyOffer,
        environment: BenchEnvironment,
        topics: Topics,
        process: LocalProcess,
        first_id: int,
        system: str,
        repeat: int,
    ) -> LatencyRun:
        count = round(offer.rate_per_s * self._settings.latency_seconds)
        account = environment.account(process)
        start = environment.end_offsets(topics.responses)
        with environment.reading(topics.responses, offer.workload, count, start) as reader:
            before = account.look()
            scheduled_ns = environment.send(
                topics.requests, offer.workload, count, first_id, offer.rate_per_s, seed=1_000 + repeat
            )
            after = account.look()
            answers = reader.finish()
        if not len(answers.ids):
            raise Stalled(f"none of {count} requests was answered")
        return LatencyRun(
            system=system,
            workload=offer.workload.name,
            repeat=repeat,
            tally=tally(answers, first_id, count, offer.workload.tolerance),
            core_s_per_1000=core_s_per_1000(before, after, count),
            other_cores=other_cores(before, after),
            rate_per_s=offer.rate_per_s,
            seconds=self._settings.latency_seconds,
            latency=Percentiles.of(latencies_ms(answers, scheduled_ns, first_id)),
            append_latency=Percentiles.of(append_latencies_ms(answers, scheduled_ns, first_id)),
        )


def _zip(ours: Sequence[System], naive: Sequence[System]) -> list[System]:
    return [system for pair in zip(ours, naive, strict=True) for system in pair]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    workloads = list(dict.fromkeys(row.workload for row in result.rows))
    figure = Figure(figsize=(8, 1.2 + 2.0 * len(workloads)), layout="constrained")
    panels = figure.subplots(len(workloads), 1, squeeze=False)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        rows = [row for row in result.rows if row.workload == workload]
        for place, row in enumerate(rows):
            for metric, mark in _MARKS.items():
                plots.point(axes, row.metrics[metric], place, mark, plots.colour(row))
        limits = {target.metric: target.limit for target in result.targets if target.workload == workload}
        for metric, limit in limits.items():
            axes.axvline(limit, color=plots.TARGET, linewidth=1, linestyle=":")
            axes.text(limit, -0.62, f" {metric[:3]} target", color=plots.TARGET, fontsize=8, va="bottom")
        rate = next(run.rate_per_s for run in result.runs if run.workload == workload and hasattr(run, "rate_per_s"))
        plots.name_rows(axes, rows)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{workload}, {rate:g} requests/s", loc="left", fontsize=11)
    for metric, mark in _MARKS.items():
        panels[0].plot([], [], mark, color=plots.INK, label=metric[:3])
    panels[0].legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel("latency from the scheduled send time, ms (median and range of the rounds)")
    return figure


@scenario(
    Latency.name,
    full=LatencySettings(),
    quick=LatencySettings.quick(latency_seconds=3.0, latency_warm_up_seconds=2.0),
    draw=draw,
)
def make(settings: LatencySettings, models: Repositories) -> Made:
    """Make the scenario."""
    return Latency(settings, models.ffnn, magika_files(models.small), models.small), models.small
