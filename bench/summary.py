"""All promises of all result files in one: `summary.json`."""

from pathlib import Path

import msgspec

from bench.results import Result

SUMMARY = "summary.json"


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """A target, what was measured for it, and how to measure it again.

    Attributes:
        target: The relation and the limit, such as `>= 0.8`.
    """

    workload: str
    metric: str
    value: float
    target: str
    met: bool
    subject: str
    command: str
    versions: dict[str, str]


def read_results(folder: Path) -> list[Result]:
    """Every scenario's file of a folder, of this run or of earlier ones."""
    paths = sorted(path for path in folder.glob("*.json") if path.name != SUMMARY)
    return [msgspec.json.decode(path.read_bytes(), type=Result) for path in paths]


def write_summary(folder: Path) -> Path:
    """Writes the summary of the result files that are there, and returns where; what was not measured is not in it."""
    promises = [
        Promise(
            workload=target.workload,
            metric=target.metric,
            value=target.value,
            target=f"{target.relation} {target.limit:g}",
            met=target.met,
            subject=target.subject,
            command=result.command,
            versions=result.versions,
        )
        for result in read_results(folder)
        for target in result.targets
    ]
    path = folder / SUMMARY
    path.write_bytes(msgspec.json.format(msgspec.json.encode(promises)) + b"\n")
    return path
