"""All promises of all result files in one: `summary.json`."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.harness.analysis.latency_phases import ALL_STAGES
from bench.report.results import Result, Target

SUMMARY = "summary.json"
NOTES = Path(__file__).parents[1] / "notes.toml"

#: What was written by hand of missed targets: by workload, by metric.
Notes = Mapping[str, Mapping[str, str]]


class Promise(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A target, what was measured for it, and how to measure it again.

    Attributes:
        target: The relation and the limit, such as `>= 0.8`.
        ledger: Of a missed target, how many milliseconds a request of its workload spends in each stage.
        note: Of a missed target, what was tried and what would close it.
    """

    workload: str
    metric: str
    value: float
    target: str
    met: bool
    system: str
    command: str
    versions: dict[str, str]
    breakdown: dict[str, float] = {}
    note: str = ""


def read_results(folder: Path) -> list[Result]:
    """Every scenario's file of a folder, of this run or of earlier ones."""
    paths = sorted(path for path in folder.glob("*.json") if path.name != SUMMARY)
    return [msgspec.json.decode(path.read_bytes(), type=Result) for path in paths]


def read_notes(path: Path = NOTES) -> Notes:
    """What was written by hand."""
    return msgspec.toml.decode(path.read_bytes(), type=dict[str, dict[str, str]])


def note_of(target: Target, notes: Notes) -> str:
    """What was written of a target; empty if nothing was."""
    return notes.get(target.workload, {}).get(target.metric, "")


def ledgers_of(results: list[Result]) -> dict[str, dict[str, float]]:
    """By workload, the stages of the ledger scenario, in milliseconds."""
    return {
        row.workload: {stage: row.metrics[f"{stage}_ms"].median for stage in ALL_STAGES}
        for result in results
        if result.scenario == "ledger"
        for row in result.rows
    }


def write_summary(folder: Path, notes: Notes) -> Path:
    """Writes the summary of the result files that are there, and returns where; what was not measured is not in it."""
    results = read_results(folder)
    ledgers = ledgers_of(results)
    promises = [
        Promise(
            workload=target.workload,
            metric=target.metric,
            value=target.value,
            target=f"{target.relation} {target.limit:g}",
            met=target.met,
            system=target.system,
            command=result.command,
            versions=result.versions,
            # The same requests in several priorities go the same way.
            breakdown={} if target.met else ledgers.get(target.workload.split(",")[0], {}),
            note="" if target.met else note_of(target, notes),
        )
        for result in results
        for target in result.targets
    ]
    path = folder / SUMMARY
    path.write_bytes(msgspec.json.format(msgspec.json.encode(promises)) + b"\n")
    return path
