"""What a benchmark writes down: every run as it was seen, what follows from them, and where that was."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from anabranch.flink_job.installation import connector_jar, find_java
from bench.harness.analysis.measures import Line, Percentiles, Spread, Tally
from bench.harness.analysis.rate_bisection import Probe

Relation = Literal["<=", ">="]

_PACKAGES = ("apache-flink", "onnxruntime", "numpy", "kafka-python", "crc32c", "confluent-kafka", "protobuf", "magika")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One system's turn.

    Attributes:
        core_s_per_1000: Core-seconds for each 1,000 requests, by part.
        other_cores: Cores that something outside the benchmark kept busy meanwhile.
    """

    system: str
    workload: str
    repeat: int
    tally: Tally
    core_s_per_1000: dict[str, float]
    other_cores: float


class LatencyRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="latency"):
    """Latency at a fixed rate, by an open-loop schedule.

    Attributes:
        latency: From the scheduled send time until the reader had the answer.
        append_latency: Until the broker wrote it down (LogAppendTime, whole milliseconds, rounded down).
    """

    rate_per_s: float
    seconds: float
    latency: Percentiles
    append_latency: Percentiles


class ThroughputRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="throughput"):
    """Requests that were there before the system started, answered as fast as it can."""

    warm_up_requests: int
    rate_per_s: float


class MemoryRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="memory"):
    """A TaskManager's resident memory over many requests.

    Attributes:
        idle_mb: Before the job was submitted.
        warm_mb: Mean over the watched requests.
        peak_mb: The most that was seen in them.
        answered: Requests answered at each sample, after warm-up.
        resident_mb: Memory at each sample.
        line: Memory over requests; its slope is in MB for each 10,000.
    """

    idle_mb: float
    warm_mb: float
    peak_mb: float
    rate_per_s: float
    answered: list[int]
    resident_mb: list[float]
    line: Line


class OverloadRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="overload"):
    """A load that is a multiple of what can be served, in several priorities.

    Attributes:
        load: Multiple of the peak.
        peak_per_s: What can be served.
        goodput_per_s: What was served while the load lasted, and `goodput_by_fifth_per_s` in each fifth of it.
        refused: Requests that were answered with `overloaded`.
        served_share: By priority, of its requests.
        p50_ms: By priority, of what was served; likewise `p99_ms`.
        drain_s: From the last request to the last answer.
        peak_mb: The most memory that the system had; `resident_mb` is all that was seen.
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


class BalanceRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="balance"):
    """Unequal work, tasks or models.

    Attributes:
        busy_s: How long the sessions of each task ran, the idlest first.
    """

    rate_per_s: float
    busy_s: list[float]


class ExchangeRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="exchange"):
    """Records of one size from task to task.

    Attributes:
        mb_per_s: As fast as they are taken, in MiB.
        latency: Spaced out, from before a record is packed until all of it has been read.
        claimed_share: Of the records, those that went by shared memory.
    """

    size_bytes: int
    mb_per_s: float
    latency: Percentiles
    claimed_share: float


class ScalingRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="scaling"):
    """A plan for so many nodes, simulated.

    Attributes:
        used: Nodes that the plan uses.
        rate_per_s: Batches of one row that came out, in the simulation.
        predicted_per_s: What the plan and the feed say, without chance.
        held_up_by: What is slowest.
    """

    nodes: int
    used: int
    stages: int
    rate_per_s: float
    predicted_per_s: float
    held_up_by: str


class RateRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="rate"):
    """A rate that was offered in search of the sustainable one, or a share of it.

    Attributes:
        load: `sustainable`, or which share.
        latency: As in `LatencyRun`.
        lag: Seconds by which latency grew in every second.
        generator_p99_ms: By how much the generator was late.
        probes: The search; where none was needed, empty.
    """

    load: str
    rate_per_s: float
    latency: Percentiles
    lag: float
    generator_p99_ms: float
    probes: list[Probe]


class LedgerRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="ledger"):
    """Where requests' time went.

    Attributes:
        latency: As in `LatencyRun`.
        stages_ms: Mean time by stage, from the scheduled send time until the reader had the answer.
    """

    rate_per_s: float
    latency: Percentiles
    stages_ms: dict[str, float]


class CostRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="cost"):
    """What a load costs.

    Attributes:
        rows: In each request.
        core_s_per_1000_rows: Core-seconds of the system, without the broker's.
    """

    rate_per_s: float
    rows: int
    core_s_per_1000_rows: float


class BurstRun(Run, frozen=True, kw_only=True, tag_field="scenario", tag="burst"):
    """A burst of more than a system can keep up with.

    Attributes:
        capacity_per_s: What it answers a second of requests that are there.
        hit_share: By priority, of its requests: those with the right answer before their deadline.
        recovery_s: From the end of the burst until latency is what it was before.
    """

    capacity_per_s: float
    hit_share: dict[str, float]
    recovery_s: float


AnyRun = (
    LatencyRun
    | ThroughputRun
    | MemoryRun
    | OverloadRun
    | RateRun
    | LedgerRun
    | CostRun
    | BurstRun
    | ExchangeRun
    | ScalingRun
    | BalanceRun
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What the repeats of one system and workload come to."""

    system: str
    workload: str
    metrics: dict[str, Spread]
    core_s_per_1000: dict[str, float]
    not_answered_right: int
    other_cores: float

    def target(self, metric: str, relation: Relation, limit: float) -> "Target":
        """Compares the median of a metric with a limit."""
        value, clean = self.metrics[metric].median, not self.not_answered_right
        return target_of(self.workload, self.system, metric, value, relation, limit, clean=clean)


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A system beside a peer: of the runs of one round, over all rounds."""

    system: str
    peer: str
    workload: str
    metric: str
    ratio: Spread


class Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A promise and its measured value.

    Attributes:
        note: For a missed target: known causes and remedies, from `notes.toml`.
        breakdown: For a missed target: mean milliseconds by phase of a request of its workload.
    """

    workload: str
    system: str
    metric: str
    value: float
    relation: Relation
    limit: float
    met: bool
    note: str = ""
    breakdown: dict[str, float] = {}


class ScenarioSummary(msgspec.Struct, kw_only=True):
    """One scenario's entry of `summary.json`.

    Attributes:
        commit: The measured commit of this project.
        settings: Settings of the run, by name.
        limits: Figures that no system can exceed, by name.
        skipped: Turns of peers that this machine cannot set up, with the reason.
    """

    scenario: str
    command: str
    commit: str
    date: str
    versions: dict[str, str]
    machine: dict[str, str]
    settings: dict[str, Any]
    method: str
    targets: list[Target]
    ratios: list[Ratio]
    rows: list[Row]
    limits: dict[str, float]
    failures: list[str]
    skipped: list[str] = []


class ScenarioResult(ScenarioSummary, kw_only=True):
    """A scenario's summary with all of its runs, for its raw file and its picture."""

    runs: list[AnyRun]

    def summary(self) -> ScenarioSummary:
        """The same without the runs."""
        names = ScenarioSummary.__struct_fields__
        return ScenarioSummary(**{name: getattr(self, name) for name in names})


def rows_of(runs: Sequence[AnyRun], metrics: dict[str, list[float]], key: Sequence[tuple[str, str]]) -> list[Row]:
    """One row for each system and workload.

    Args:
        metrics: Values by name, one for each run.
        key: System and workload in the order that the rows shall have.
    """
    rows = []
    for system, workload in key:
        where = [index for index, run in enumerate(runs) if (run.system, run.workload) == (system, workload)]
        if not where:
            continue
        chosen = [runs[index] for index in where]
        parts = sorted({part for run in chosen for part in run.core_s_per_1000})
        rows.append(
            Row(
                system=system,
                workload=workload,
                metrics={name: Spread.of([values[index] for index in where]) for name, values in metrics.items()},
                core_s_per_1000={
                    part: Spread.of([run.core_s_per_1000.get(part, 0.0) for run in chosen]).median for part in parts
                },
                not_answered_right=sum(run.tally.missing + run.tally.wrong + run.tally.repeated for run in chosen),
                other_cores=Spread.of([run.other_cores for run in chosen]).median,
            )
        )
    return rows


def keys_of(runs: Sequence[AnyRun]) -> list[tuple[str, str]]:
    """Systems and workloads in the order of their first runs."""
    return list(dict.fromkeys((run.system, run.workload) for run in runs))


def ratio_of(
    runs: Sequence[AnyRun], values: Sequence[float], system: str, peer: str, workload: str, metric: str
) -> Ratio | None:
    """A system's value over a peer's, round by round; None where one of them is missing."""
    by_round: dict[tuple[str, int], float] = {
        (run.system, run.repeat): value
        for run, value in zip(runs, values, strict=True)
        if run.workload == workload and run.system in (system, peer)
    }
    ratios = [
        value / by_round[peer, repeat]
        for (name, repeat), value in by_round.items()
        if name == system and by_round.get((peer, repeat))
    ]
    if not ratios:
        return None
    return Ratio(system=system, peer=peer, workload=workload, metric=metric, ratio=Spread.of(ratios))


def target_of(
    workload: str, system: str, metric: str, value: float, relation: Relation, limit: float, *, clean: bool
) -> Target:
    """Whether a value keeps a promise, which takes runs whose requests were all answered once and right."""
    kept = value <= limit if relation == "<=" else value >= limit
    return Target(
        workload=workload,
        system=system,
        metric=metric,
        value=round(value, 4),
        relation=relation,
        limit=limit,
        met=kept and clean,
    )


def versions() -> dict[str, str]:
    """Versions of everything that figures can depend on."""
    java = subprocess.run(
        [str(find_java() / "bin" / "java"), "-version"], capture_output=True, text=True, check=False
    ).stderr.splitlines()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "kafka-connector": connector_jar().stem.removeprefix("flink-sql-connector-kafka-"),
        "java": java[0] if java else "unknown",
    }


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    try:
        models = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        models = []
    return {
        "cpu": models[0] if models else platform.processor() or "unknown",
        "cores": str(os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "system": f"{platform.system()} {platform.release()}",
    }


def today() -> str:
    """The time of writing."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str:
    """This project's commit, marked where files were changed."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"
