"""Exchange: tensors from task to task, as messages and by shared memory, by size."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import msgspec
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anabranch.flink_job.config import ExchangeConfig as Defaults
from anabranch.stack.flink.cluster import FlinkCluster
from bench.harness.accounting import ProcessorTime, other_cores
from bench.harness.analysis.measures import Percentiles, Tally
from bench.harness.environment import BenchEnvironment
from bench.harness.messages import MESSAGES, SHARED_MEMORY, Transport, TransportCommand, TransportLog, TransportPhase
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Ratio, Run, ScenarioResult, keys_of, ratio_of, rows_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.workloads.repositories import Repositories

KB, MB = 1024, 1024 * 1024
SIZES = (4 * KB, 16 * KB, 64 * KB, 256 * KB, MB, 4 * MB, 10 * MB, 32 * MB)

_TRANSPORTS: tuple[Transport, ...] = (MESSAGES, SHARED_MEMORY)
_BURST_BYTES = 256 * MB
_LEAST, _MOST = 8, 2000
_PACED = 15
#: Much longer than a record needs.
_INTERVAL_S, _INTERVAL_S_PER_BYTE = 0.02, 0.012 / MB


class ExchangeRun(Run, frozen=True, kw_only=True):
    """Records of one size and one transport.

    Attributes:
        mb_per_s: MiB a second at full speed.
        latency: Time of spaced records, from packing to reading.
        claimed_share: Share of records by shared memory.
    """

    size_bytes: int
    mb_per_s: float
    latency: Percentiles
    claimed_share: float


class Exchange:
    """Both ways in turn, size by size, in one job."""

    name = "exchange"
    method = (
        "A standalone Flink cluster: a task on one TaskManager writes, one on another reads, and Flink's exchange is "
        "between them, in thread mode. Each size goes both ways, in turn, in every round: as fast as it is taken "
        "(MB/s, from before the first is packed until the last has been read), and spaced out (p50, likewise of each). "
        "The reader adds up all bytes of every record, and compares. Where the arena is full, shared memory means "
        "messages, too: claimed is the share that was not. Core-seconds are not split by size. "
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def steps(self) -> Iterator[Turn]:
        """One job for everything: its phases are short."""
        seconds = 30 + 25 * (1 + self._settings.repeats)
        yield Turn("exchange: messages, shared memory", self._run, seconds)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates and latencies by size, their ratios, and the crossover."""
        ours = [run for run in runs if isinstance(run, ExchangeRun)]
        metrics = {
            "mb_per_s": [run.mb_per_s for run in ours],
            "p50_ms": [run.latency.p50_ms for run in ours],
            "claimed_share": [run.claimed_share for run in ours],
        }
        rows = rows_of(ours, metrics, keys_of(ours))
        sizes = {run.workload: run.size_bytes for run in ours}
        ratios = [
            ratio
            for workload, metric in product(sizes, ("mb_per_s", "p50_ms"))
            if (ratio := ratio_of(ours, metrics[metric], SHARED_MEMORY, MESSAGES, workload, metric))
        ]
        found = {
            "bytes from which on shared memory has the higher rate": crossover(ratios, sizes, "mb_per_s"),
            "bytes from which on shared memory has the lower latency": crossover(ratios, sizes, "p50_ms"),
        }
        return Conclusion(rows, ratios, [], {name: size for name, size in found.items() if size is not None})

    def _run(self, environment: BenchEnvironment) -> list[ExchangeRun]:
        phases = phases_of(self._settings.repeats)
        out = environment.folder / "exchange-seen.json"
        with FlinkCluster(environment.folder / "exchange-cluster", task_managers=2) as cluster:
            command = TransportCommand(
                flink_url=cluster.url,
                job=os.urandom(16).hex(),
                arena_bytes=Defaults().arena_bytes,
                phases=phases,
                out_path=str(out),
            )
            account = ProcessorTime({})
            before = account.look()
            environment.run_to_end("exchange", "bench.systems.transport_job", command.to_argument())
            after = account.look()
        seen = msgspec.json.decode(out.read_bytes(), type=list[TransportLog])
        busy = other_cores(before, after)
        bursts = zip(phases[::2], seen[::2], seen[1::2], strict=True)
        return [run_of(phase, burst, paced, busy) for phase, burst, paced in bursts if phase.repeat >= 0]


def phases_of(repeats: int) -> list[TransportPhase]:
    """Phases of a warm-up round and all others: a burst and spaced records by size and transport."""
    phases = []
    for repeat, size_bytes, transport in product(range(-1, repeats), SIZES, _TRANSPORTS):
        burst = min(max(_BURST_BYTES // size_bytes, _LEAST), _MOST)
        pause_s = _INTERVAL_S + _INTERVAL_S_PER_BYTE * size_bytes
        for count, interval_s in ((burst, 0.0), (_PACED, pause_s)):
            phases.append(
                TransportPhase(
                    transport=transport, size_bytes=size_bytes, repeat=repeat, count=count, interval_s=interval_s
                )
            )
    return phases


def run_of(phase: TransportPhase, burst: TransportLog, paced: TransportLog, busy_cores: float) -> ExchangeRun:
    """Return the run of one size and transport in one round."""
    wanted, came = phase.count + _PACED, len(burst.spent_ms) + len(paced.spent_ms)
    span_s = (burst.ended_ms - burst.started_ms) / 1000
    return ExchangeRun(
        system=phase.transport,
        workload=label_of(phase.size_bytes),
        repeat=phase.repeat,
        tally=Tally(
            requests=wanted,
            answered=came,
            missing=wanted - came,
            wrong=burst.wrong + paced.wrong,
            repeated=0,
            deviation=0.0,
        ),
        core_s_per_1000={},
        other_cores=busy_cores,
        size_bytes=phase.size_bytes,
        mb_per_s=round(len(burst.spent_ms) * phase.size_bytes / MB / max(span_s, 1e-9), 1),
        latency=Percentiles.of(np.array(paced.spent_ms)),
        claimed_share=round((burst.claims + paced.claims) / max(came, 1), 4),
    )


def label_of(size_bytes: int) -> str:
    """Return a size with its unit."""
    return f"{size_bytes // MB} MB" if size_bytes >= MB else f"{size_bytes // KB} KB"


def crossover(ratios: Sequence[Ratio], sizes: Mapping[str, int], metric: str) -> int | None:
    """Smallest size from which shared memory stays better; None if it is worse at the largest.

    Args:
        sizes: Bytes by workload.
    """
    found = None
    for ratio in sorted((each for each in ratios if each.metric == metric), key=lambda each: sizes[each.workload]):
        better = ratio.ratio.median > 1 if metric == "mb_per_s" else ratio.ratio.median < 1
        found = (found or sizes[ratio.workload]) if better else None
    return found


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    runs = [run for run in result.runs if isinstance(run, ExchangeRun)]
    sizes = {run.workload: run.size_bytes for run in runs}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("mb_per_s", "p50_ms"), ("MB/s, as fast as taken", "p50 latency, ms"), strict=True
    ):
        for system in dict.fromkeys(row.system for row in result.rows):
            rows = sorted((row for row in result.rows if row.system == system), key=lambda row: sizes[row.workload])
            places = [sizes[row.workload] for row in rows]
            spreads = [row.metrics[metric] for row in rows]
            colour = plots.PEER if system == MESSAGES else plots.OURS
            axes.plot(places, [spread.median for spread in spreads], "o-", color=colour, label=system)
            axes.vlines(places, [spread.low for spread in spreads], [spread.high for spread in spreads], color=colour)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(sizes.values()), list(sizes), rotation=45)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("size of a record")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


@scenario(Exchange.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:
    """Make the scenario."""
    return Exchange(settings), models.small
