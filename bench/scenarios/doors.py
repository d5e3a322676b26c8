"""The gateway's doors: latency beside the way through Kafka, and closed loops beside other servers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import Percentiles, Spread, Tally, latencies_ms, tally
from bench.harness.door_load import DoorLog
from bench.harness.environment import BenchEnvironment, Doors, Topics
from bench.harness.messages import DoorProtocol
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import MLSERVER, RAY_SERVE, System, anabranch
from bench.workloads.models import FFNN
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, ffnn_rows, magika_files

OURS, KAFKA = "gateway", "Kafka alone"
CONNECTIONS = 32
_RATE_PER_S = 200.0
#: Latency that the gateway may add to the way through Kafka.
_MOST_ADDED_MS = 2.0
_ADDED, _RATE = f"p50 - p50 of {KAFKA}, ms", "rate_per_s"
#: Least ratios of rates, by peer and model.
_LEAST = {
    (MLSERVER.kind, FFNN): 3.0,
    (RAY_SERVE.kind, FFNN): 1.5,
    (MLSERVER.kind, MAGIKA): 1.0,
    (RAY_SERVE.kind, MAGIKA): 1.0,
}
_METRICS = ("p50_ms", "p99_ms")

Door = Literal["HTTP", "gRPC"]
DOORS: tuple[Door, ...] = ("HTTP", "gRPC")
#: The least work for each server that answers over HTTP.
_PROTOCOLS: dict[str, DoorProtocol] = {
    OURS: "HTTP, binary",
    MLSERVER.kind: "HTTP, JSON",
    RAY_SERVE.kind: "HTTP, protobuf",
}


class DoorSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        door_seconds: Duration of each load.
        door_warm_up_seconds: The same load before it; JVMs compile meanwhile.
        door_tasks: Tasks of the job, and replicas of Ray Serve.
    """

    door_seconds: float = 10.0
    door_warm_up_seconds: float = 18.0
    door_tasks: int = 1


class DoorRun(Run, frozen=True, kw_only=True):
    """Requests at one door.

    Attributes:
        rate_per_s: Answers a second.
        latency: From the scheduled time at a fixed rate, else from the sending.
    """

    rate_per_s: float
    latency: Percentiles


@dataclass(frozen=True)
class DoorScenario:
    """Our gateway and job, and two servers, in turn."""

    settings: DoorSettings
    ffnn: Workload
    magika: Workload

    name = "doors"
    method = (
        f"Two loads from a client process of its own. At {_RATE_PER_S:g} requests a second, by a Poisson schedule: one "
        "row for the feed-forward network, through Kafka alone (a producer and a consumer, as in `latency`), and to "
        "the gateway of the same job over HTTP with binary tensors and over gRPC; latency from the scheduled time to "
        f"the answer in the client. In a closed loop: {CONNECTIONS} connections, each with one request under way, of "
        "one row for the feed-forward network and of one file for Magika. MLServer takes JSON over HTTP, as it has no "
        "binary tensors there, with adaptive batching; Ray Serve takes the protocol's gRPC message as it is, over "
        "HTTP and gRPC, with HAProxy and `RAY_SERVE_THROUGHPUT_OPTIMIZED`, and batches without waiting. All sessions "
        "have one thread. Our requests pass a gateway, Kafka and Flink, twice; theirs stay in memory. Answers are "
        "compared with a direct run of the model afterwards. Median of the rounds, systems in turn; ratios and "
        "differences are taken round by round, HTTP beside HTTP and gRPC beside gRPC."
    )

    def steps(self) -> Iterator[Turn]:
        """Ours, MLServer, Ray Serve; then again for the next round."""
        settings = self.settings
        load_s = settings.door_seconds + settings.door_warm_up_seconds + 3
        for repeat in range(settings.repeats):
            label = f"doors, round {repeat + 1}"
            yield Turn(f"{label}: {OURS}", partial(self._run_ours, repeat), 25 + 7 * load_s, repeat)
            for peer in (MLSERVER, RAY_SERVE):
                yield Turn(f"{label}: {peer.name}", partial(self._run_peer, peer, repeat), 20 + 4 * load_s, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Latencies beside Kafka's, and rates beside the peers'."""
        ours = [run for run in runs if isinstance(run, DoorRun)]
        metrics = {name: [float(getattr(run.latency, name)) for run in ours] for name in _METRICS}
        metrics[_RATE] = [run.rate_per_s for run in ours]
        rows = rows_of(ours, metrics, sorted(keys_of(ours), key=lambda key: key[1]))
        wrong = {(row.system, row.workload): row.not_answered_right for row in rows}
        ratios, targets = [], []
        at_rate = self._at_rate
        for door in DOORS:
            system = f"{OURS}, {door}"
            of_kafka = {run.repeat: run for run in ours if (run.system, run.workload) == (KAFKA, at_rate)}
            added = [
                run.latency.p50_ms - of_kafka[run.repeat].latency.p50_ms
                for run in ours
                if (run.system, run.workload) == (system, at_rate) and run.repeat in of_kafka
            ]
            if added:
                clean = not wrong[system, at_rate]
                targets.append(
                    target_of(at_rate, system, _ADDED, Spread.of(added).median, "<=", _MOST_ADDED_MS, clean=clean)
                )
            for (peer, _), workload, least in self._beside():
                ratio = ratio_of(ours, metrics[_RATE], system, f"{peer}, {door}", workload, _RATE)
                if ratio:
                    ratios.append(ratio)
                    clean = not wrong[system, workload]
                    text = f"rate / {ratio.peer}"
                    targets.append(target_of(workload, system, text, ratio.ratio.median, ">=", least, clean=clean))
        return Conclusion(rows, ratios, targets, {})

    def _beside(self) -> Iterator[tuple[tuple[str, str], str, float]]:
        for key, least in _LEAST.items():
            yield key, _closed(self.ffnn if key[1] == FFNN else self.magika), least

    @property
    def _at_rate(self) -> str:
        return f"{self.ffnn.name} at {_RATE_PER_S:g}/s"

    def _run_ours(self, repeat: int, environment: BenchEnvironment) -> list[DoorRun]:
        topics, tasks = environment.topics(), self.settings.door_tasks
        with (
            environment.serving(anabranch("thread", tasks), topics) as job,
            environment.serving_at_gateway(topics) as (gateway, doors),
        ):
            environment.send(topics.requests, self.ffnn, 1, 0, None)
            environment.await_answers(topics.responses, 1, job)
            parts = [job, gateway]
            found = [
                self._at_door(environment, OURS, door, doors, workload, repeat, parts)
                for workload in (self.ffnn, self.magika)
                for door in DOORS
            ]
            found += [
                self._at_door(environment, OURS, door, doors, self.ffnn, repeat, parts, _RATE_PER_S) for door in DOORS
            ]
            found.append(self._through_kafka(environment, topics, job, repeat))
        environment.drop(topics.requests, topics.responses, topics.errors)
        return found

    def _run_peer(self, peer: System, repeat: int, environment: BenchEnvironment) -> list[DoorRun]:
        with environment.serving_at_doors(peer) as (process, doors):
            return [
                self._at_door(environment, peer.kind, door, doors, workload, repeat, [process])
                for workload in (self.ffnn, self.magika)
                for door in DOORS
            ]

    def _at_door(
        self,
        environment: BenchEnvironment,
        server: str,
        door: Door,
        doors: Doors,
        workload: Workload,
        repeat: int,
        parts: Sequence[LocalProcess],
        rate_per_s: float | None = None,
    ) -> DoorRun:
        settings = self.settings
        account = environment.account(*parts)
        before = account.look()
        log = environment.ask(
            doors.http if door == "HTTP" else doors.grpc,
            _PROTOCOLS[server] if door == "HTTP" else "gRPC",
            workload,
            connections=CONNECTIONS,
            warm_up_s=settings.door_warm_up_seconds,
            seconds=settings.door_seconds,
            rate_per_s=rate_per_s,
            seed=1_000 + repeat,
        )
        after = account.look()
        share = 1 + settings.door_warm_up_seconds / settings.door_seconds
        return DoorRun(
            system=f"{server}, {door}",
            workload=_closed(workload) if rate_per_s is None else self._at_rate,
            repeat=repeat,
            tally=_tally(log, workload.tolerance),
            core_s_per_1000=core_s_per_1000(before, after, round(len(log.latencies_ms) * share)),
            other_cores=other_cores(before, after),
            rate_per_s=round(len(log.latencies_ms) / settings.door_seconds, 1),
            latency=Percentiles.of(log.latencies_ms),
        )

    def _through_kafka(self, environment: BenchEnvironment, topics: Topics, job: LocalProcess, repeat: int) -> DoorRun:
        seconds, sent = self.settings.door_seconds, 1
        count = round(_RATE_PER_S * seconds)
        start = environment.end_offsets(topics.responses)
        account = environment.account(job)
        with environment.reading(topics.responses, self.ffnn, count, start) as reader:
            before = account.look()
            scheduled_ns = environment.send(topics.requests, self.ffnn, count, sent, _RATE_PER_S, seed=1_000 + repeat)
            after = account.look()
            answers = reader.finish()
        return DoorRun(
            system=KAFKA,
            workload=self._at_rate,
            repeat=repeat,
            tally=tally(answers, sent, count, self.ffnn.tolerance),
            core_s_per_1000=core_s_per_1000(before, after, count),
            other_cores=other_cores(before, after),
            rate_per_s=_RATE_PER_S,
            latency=Percentiles.of(latencies_ms(answers, scheduled_ns, sent)),
        )


def _closed(workload: Workload) -> str:
    return f"{workload.name}, {CONNECTIONS} connections"


def _tally(log: DoorLog, tolerance: float) -> Tally:
    right = log.deviations <= tolerance
    count = len(right)
    deviation = float(log.deviations[right].max()) if right.any() else 0.0
    return Tally(count, count, 0, int(np.count_nonzero(~right)), 0, deviation)


def draw(result: ScenarioResult) -> Figure:
    """Draw the rates of the closed loops."""
    workloads = list(dict.fromkeys(row.workload for row in result.rows if row.workload.endswith("connections")))
    figure = Figure(figsize=(8, 1.0 + 1.8 * len(workloads)), layout="constrained")
    panels = figure.subplots(len(workloads), 1, squeeze=False)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        rows = [row for row in result.rows if row.workload == workload]
        for place, row in enumerate(rows):
            colour = plots.OURS if row.system.startswith(OURS) else plots.PEER
            plots.point(axes, row.metrics[_RATE], place, "o", colour)
        plots.name_rows(axes, rows)
        axes.set_xlim(left=0)
        axes.set_title(workload, loc="left", fontsize=11)
    panels[-1].set_xlabel("answers a second (median and range of the rounds)")
    return figure


@scenario(
    "doors",
    full=DoorSettings(repeats=3),
    quick=DoorSettings.quick(door_seconds=2.0, door_warm_up_seconds=1.0),
    draw=draw,
)
def make(settings: DoorSettings, models: Repositories) -> Made:
    """Make the scenario."""
    repository: Path = models.small
    return DoorScenario(settings, ffnn_rows(repository), magika_files(repository)), repository
