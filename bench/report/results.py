"""Results of a scenario: its runs, figures, targets and origin."""

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
from bench.harness.analysis.measures import Spread, Tally
from bench.harness.analysis.ratio_interval import RatioInterval

Relation = Literal["<=", ">="]

_PACKAGES = ("apache-flink", "onnxruntime", "numpy", "kafka-python", "crc32c", "confluent-kafka", "protobuf", "magika")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One system's turn.

    Attributes:
        core_s_per_1000: Core-seconds for each 1,000 requests, by part.
        other_cores: Cores that processes outside the benchmark kept busy.
    """

    system: str
    workload: str
    repeat: int
    tally: Tally
    core_s_per_1000: dict[str, float]
    other_cores: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one system and workload over all rounds."""

    system: str
    workload: str
    metrics: dict[str, Spread]
    core_s_per_1000: dict[str, float]
    not_answered_right: int
    other_cores: float

    def target(self, metric: str, relation: Relation, limit: float) -> "Target":
        """Compare the median of a metric with a limit."""
        value, clean = self.metrics[metric].median, not self.not_answered_right
        return target_of(self.workload, self.system, metric, value, relation, limit, clean=clean)


class Ratio(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A system's figure over a peer's, round by round.

    Attributes:
        interval: 95 % interval of its mean, from two rounds on.
    """

    system: str
    peer: str
    workload: str
    metric: str
    ratio: Spread
    interval: tuple[float, float] | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A promise and its measured value.

    Attributes:
        note: Of a missed target: causes and remedies, from `notes.toml`.
        breakdown: Of a missed target: mean ms by phase.
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
        settings: Settings of the run.
        limits: Figures that no system can exceed.
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

    runs: list[Run]

    def summary(self) -> ScenarioSummary:
        """Return the same without the runs."""
        names = ScenarioSummary.__struct_fields__
        return ScenarioSummary(**{name: getattr(self, name) for name in names})


def rows_of(runs: Sequence[Run], metrics: dict[str, list[float]], key: Sequence[tuple[str, str]]) -> list[Row]:
    """One row for each system and workload.

    Args:
        metrics: Values by name, one for each run.
        key: System and workload of each row, in order.
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


def keys_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Systems and workloads in the order of their first runs."""
    return list(dict.fromkeys((run.system, run.workload) for run in runs))


def ratio_of(
    runs: Sequence[Run], values: Sequence[float], system: str, peer: str, workload: str, metric: str
) -> Ratio | None:
    """Return a system's value over a peer's, round by round; None where one of them is missing."""
    by_round: dict[tuple[str, int], float] = {
        (run.system, run.repeat): value
        for run, value in zip(runs, values, strict=True)
        if run.workload == workload and run.system in (system, peer)
    }
    pairs = [
        (value, by_round[peer, repeat])
        for (name, repeat), value in by_round.items()
        if name == system and by_round.get((peer, repeat))
    ]
    if not pairs:
        return None
    interval = None
    if len(pairs) > 1 and min(map(min, pairs)) > 0:
        found = RatioInterval.of(*zip(*pairs, strict=True))
        interval = round(found.low, 4), round(found.high, 4)
    spread = Spread.of([value / base for value, base in pairs])
    return Ratio(system=system, peer=peer, workload=workload, metric=metric, ratio=spread, interval=interval)


def target_of(
    workload: str, system: str, metric: str, value: float, relation: Relation, limit: float, *, clean: bool
) -> Target:
    """Compare a value with a limit; runs with lost or wrong answers miss it."""
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
    """Versions of the software that figures depend on."""
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
    """Return the description of this machine."""
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
    """Return the time of writing."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str:
    """Thi project's commit, with `-dirty` after local changes."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"
