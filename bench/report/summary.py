"""The files of a results folder: `summary.json`, raw runs, and the notes on missed targets."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.harness.analysis.latency_phases import ALL_STAGES
from bench.report.results import ScenarioResult, ScenarioSummary, Target

SUMMARY = "summary.json"
#: Folder of the raw runs; git ignores it.
RAW = "raw"
NOTES = Path(__file__).parents[1] / "notes.toml"

#: Notes on missed targets by workload and metric.
Notes = Mapping[str, Mapping[str, str]]


def read_summary(folder: Path) -> dict[str, ScenarioSummary]:
    """Return the scenarios of a results folder by name; empty before its first run."""
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    found = msgspec.json.decode(path.read_bytes(), type=list[ScenarioSummary])
    return {summary.scenario: summary for summary in found}


def write_result(folder: Path, result: ScenarioResult, notes: Notes) -> list[ScenarioSummary]:
    """Write a scenario's raw runs and its entry of the summary.

    Returns:
        All entries of the summary, in order of their names.
    """
    raw = folder / RAW / f"{result.scenario}.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return write_summary(folder, read_summary(folder) | {result.scenario: result.summary()}, notes)


def write_summary(folder: Path, found: Mapping[str, ScenarioSummary], notes: Notes) -> list[ScenarioSummary]:
    """Write `summary.json` with the notes and breakdowns of missed targets, and return its entries."""
    breakdowns = breakdowns_of(found)
    summaries = [_annotated(found[name], notes, breakdowns) for name in sorted(found)]
    (folder / SUMMARY).write_text("[\n" + ",\n".join(map(_text_of, summaries)) + "\n]\n")
    return summaries


def breakdowns_of(found: Mapping[str, ScenarioSummary]) -> dict[str, dict[str, float]]:
    """Mean milliseconds by phase, by workload, from the scenario that measures them."""
    rows = found["ledger"].rows if "ledger" in found else []
    return {row.workload: {phase: row.metrics[f"{phase}_ms"].median for phase in ALL_STAGES} for row in rows}


def read_notes(path: Path = NOTES) -> Notes:
    """Return the notes on missed targets."""
    return msgspec.toml.decode(path.read_bytes(), type=dict[str, dict[str, str]])


def _annotated(
    summary: ScenarioSummary, notes: Notes, breakdowns: Mapping[str, Mapping[str, float]]
) -> ScenarioSummary:
    def annotate(target: Target) -> Target:
        if target.met:
            return msgspec.structs.replace(target, note="", breakdown={})
        # Variants of a workload, such as "magika, 3 priorities", go through the same phases.
        plain, _, _ = target.workload.partition(",")
        note = notes.get(target.workload, {}).get(target.metric, "")
        return msgspec.structs.replace(target, note=note, breakdown=dict(breakdowns.get(plain, {})))

    return msgspec.structs.replace(summary, targets=[annotate(target) for target in summary.targets])


def _text_of(summary: ScenarioSummary) -> str:
    """One field or list element a line, for readable diffs."""
    fields = []
    for name, value in msgspec.to_builtins(summary).items():
        if isinstance(value, list) and value:
            elements = ",\n".join(f"   {_json(element)}" for element in value)
            fields.append(f'  "{name}": [\n{elements}\n  ]')
        else:
            fields.append(f'  "{name}": {_json(value)}')
    return " {\n" + ",\n".join(fields) + "\n }"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
