"""Throughput of stored single-row requests of the feed-forward network."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.analysis.measures import Spread
from bench.harness.environment import BenchEnvironment
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Ratio, Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.flink.crayfish_wire import as_crayfish
from bench.systems.in_memory import beam
from bench.systems.in_memory.onnx_runtime_alone import rows_per_s
from bench.systems.registry import (
    CONFLUENT,
    CRAYFISH,
    JAVA,
    KAFKA_PYTHON,
    MLSERVER,
    RAY_SERVE,
    System,
    anabranch,
    naive_map,
)
from bench.workloads.models import FFNN, FFNN_WIDTHS
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

_METRIC = "rate_per_s"
_RAW_BATCHES = (1, 64)
_RAW_SECONDS = 2.0
_PEERS = (KAFKA_PYTHON, CONFLUENT, JAVA, CRAYFISH, RAY_SERVE, MLSERVER)
#: Shares of the requests for slow systems.
_SHARES = {KAFKA_PYTHON: 1 / 10, CRAYFISH: 1 / 20, RAY_SERVE: 1 / 40, MLSERVER: 1 / 40}
#: Targets, as ratios to peers.
_LEAST = {
    "naive PyFlink map": 1.5,
    CONFLUENT.name: 0.5,
    JAVA.name: 0.5,
    CRAYFISH.name: 5.0,
    RAY_SERVE.name: 10.0,
    MLSERVER.name: 10.0,
}


class Throughput:
    """Every system in turn, on the same records of the same topic."""

    name = "throughput"
    method = (
        "All requests are in the topic before the first system starts, and every system reads the same records; the "
        "slow ones fewer (kafka-python a tenth, Java on Crayfish's JSON a twentieth, Ray Serve and MLServer a "
        "fortieth), and on Crayfish's JSON the same rows as text. Rate = answers after warm-up / time between their "
        "first and last LogAppendTime; no generator runs meanwhile, and answers are read and compared with a direct "
        "run of the model afterwards. Median of the rounds, systems in turn; ratios are taken round by round. Beam "
        "runs in memory, without broker."
    )

    def __init__(self, settings: Settings, ffnn: Workload, repository: Path) -> None:
        self._settings = settings
        self._workload = ffnn
        self._repository = repository
        self._pairs = [(anabranch(mode, tasks), naive_map(mode, tasks)) for tasks in (1, 2) for mode in settings.modes]
        self._preloaded: dict[tuple[str, float], Preloaded] = {}
        self._limits: dict[str, float] = {}

    def steps(self) -> Iterator[Turn]:
        """Yield the limits; then each round: ours, naive, the other peers, ours and naive with two tasks."""
        yield Turn("throughput: ONNX Runtime alone", self._measure_limit)
        yield Turn("throughput: Beam in memory", self._measure_beam)
        # Serving and comparing run at some 80,000 requests a second each.
        seconds = 15 + (self._settings.throughput_warm_up + self._settings.throughput_requests) / 40_000
        one_task = [system for pair in self._pairs if pair[0].parallelism == 1 for system in pair]
        two_tasks = [system for pair in self._pairs if pair[0].parallelism == 2 for system in pair]
        for repeat in range(self._settings.repeats):
            for system in (*one_task, *_PEERS, *two_tasks):
                label = f"throughput, round {repeat + 1}: {system.name}"
                yield Turn(label, partial(self._run, system, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates, and ours over each peer's."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        rows = rows_of(ours, {_METRIC: rates}, keys_of(ours))
        beside_naive = [self._ratio(ours, rates, system, naive) for system, naive in self._pairs]
        beside_peers = [
            self._ratio(ours, rates, system, peer)
            for system, _ in self._pairs
            if system.parallelism == 1
            for peer in _PEERS
        ]
        speed_up = [
            self._ratio(ours, rates, two, one)
            for kind in zip(*self._pairs, strict=True)
            for one in kind
            for two in kind
            if one.mode == two.mode and (one.parallelism, two.parallelism) == (1, 2)
        ]
        wrong = {row.system: row.not_answered_right for row in rows}
        targets = [
            target_of(
                ratio.workload,
                ratio.system,
                f"rate / {ratio.peer}",
                ratio.ratio.median,
                ">=",
                limit,
                clean=not wrong[ratio.system],
            )
            for ratio in (*beside_naive, *beside_peers)
            if ratio and (limit := _LEAST.get(ratio.peer.split(",")[0])) is not None
        ]
        ratios = [ratio for ratio in (*beside_naive, *beside_peers, *speed_up) if ratio]
        return Conclusion(rows, ratios, targets, self._limits)

    def _ratio(self, runs: Sequence[Run], rates: list[float], system: System, peer: System) -> Ratio | None:
        return ratio_of(runs, rates, system.name, peer.name, self._workload.name, _METRIC)

    def _measure_limit(self, environment: BenchEnvironment) -> list[ThroughputRun]:  # noqa: ARG002 - a step's
        row = np.random.default_rng(0).random((1, FFNN_WIDTHS[0]), np.float32)
        for batch in _RAW_BATCHES:
            rates = [rows_per_s(self._model, row, batch, _RAW_SECONDS) for _ in range(self._settings.repeats)]
            name = f"ONNX Runtime alone, 1 thread, batch {batch}: rows/s"
            self._limits[name] = round(Spread.of(rates).median)
        return []

    def _measure_beam(self, environment: BenchEnvironment) -> list[ThroughputRun]:  # noqa: ARG002 - a step's
        count = self._settings.throughput_requests
        rates = [beam.rows_per_s(self._model, count) for _ in range(self._settings.repeats)]
        self._limits["Beam RunInference in memory, 1 thread, batch 64: rows/s"] = round(Spread.of(rates).median)
        return []

    @property
    def _model(self) -> Path:
        return self._repository / FFNN / "1" / "model.onnx"

    def _run(self, system: System, repeat: int, environment: BenchEnvironment) -> list[ThroughputRun]:
        workload = as_crayfish(self._workload) if system == CRAYFISH else self._workload
        share = _SHARES.get(system, 1.0)
        # The same workload and share: the same records.
        key = workload.name, share
        if key not in self._preloaded:
            self._preloaded[key] = self._preload(workload, share)
        run = self._preloaded[key].serve(system, repeat, environment)
        # The same rows on another wire.
        return [msgspec.structs.replace(run, workload=self._workload.name)]

    def _preload(self, workload: Workload, share: float) -> Preloaded:
        requests, warm_up = self._settings.throughput_requests, self._settings.throughput_warm_up
        return Preloaded(workload, ceil(requests * share), ceil(warm_up * share))


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(10, 1.3 + 0.5 * len(result.rows)), layout="constrained")
    rates, costs = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(result.rows):
        rate = row.metrics["rate_per_s"]
        rates.barh(place, rate.median, color=plots.colour(row), height=0.6)
        rates.plot([rate.low, rate.high], [place, place], color=plots.INK, linewidth=1.5)
        rates.text(rate.high, place, f"  {rate.median:,.0f}", va="center", fontsize=9)
        # One sum: systems differ in their number of parts.
        core_ms = 1000 * sum(row.core_s_per_1000.values())
        costs.barh(place, core_ms, color=plots.colour(row), height=0.6)
        costs.text(core_ms, place, f"  {core_ms:,.0f}", va="center", fontsize=9)
    plots.name_rows(rates, result.rows)
    rates.set_xlim(0, 1.18 * max(row.metrics["rate_per_s"].high for row in result.rows))
    rates.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    rates.set_xlabel("requests/s (median; line: range)")
    rates.set_title("FFNN, one row a request", loc="left", fontsize=11)
    costs.set_xscale("log")
    costs.margins(x=0.12)
    costs.set_xlabel("core-ms for 1,000 requests, with the broker's")
    plots.clean(costs)
    return figure


@scenario(Throughput.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:
    """Make the scenario."""
    return Throughput(settings, models.ffnn, models.small), models.small
