"""Results as text: a table on the screen, and the README of the results' folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from bench.harness.analysis.latency_phases import ALL_STAGES
from bench.harness.analysis.measures import Spread
from bench.report.results import Result, Row
from bench.report.summary import Notes, note_of, read_results

_METRIC_NAMES = {
    "mb_per_s": "MB/s",
    "rate_per_s": "requests/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "generator_p99_ms": "generator late, p99 ms",
    "of_attainable": "of attainable",
    "p99_ms_1": "p99 ms, priority 1",
    "p99_ms_5": "priority 5",
    "p99_ms_9": "priority 9",
    "busiest_over_mean": "busiest / mean",
    "served_share_1": "served, priority 1",
    "refused_share": "refused",
    "drain_s": "drain s",
    "claimed_share": "claimed",
    "idle_mb": "idle MB",
    "warm_mb": "warm MB",
    "peak_mb": "peak MB",
    "stops_at_nodes": "stops at, nodes",
    "speed_up_at_stop": "speed-up there",
    "speed_up_at_1024": "at 1,024",
    "simulated_to_predicted": "simulated / predicted",
    "mb_per_10000_requests": "MB per 10,000 requests",
    "mean_ms": "mean ms",
    "core_s_per_1000_rows": "core-s per 1,000 rows",
    **{f"hit_share_{priority}": f"deadline kept, priority {priority}" for priority in (1, 5, 9)},
    "recovery_s": "recovery s",
    **{f"{stage}_ms": f"{stage} ms" for stage in ALL_STAGES},
    "explained": "explained",
}


def table_of(result: Result) -> Table:
    """A scenario's rows for the screen."""
    header, *lines = _cells(result, with_ranges=False)
    table = Table(title=result.scenario, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number < 2)
    for line in lines:
        table.add_row(*line)
    return table


def verdicts(result: Result, notes: Notes) -> Iterator[str]:
    """Targets, ratios, limits, what was skipped and what failed, a line each; a missed target with its note."""
    for target in result.targets:
        verdict = "met" if target.met else "MISSED"
        limit = f"{target.relation} {target.limit:g}"
        note = "" if target.met else f". {note_of(target, notes) or 'No note says why.'}"
        yield f"{verdict}: {target.workload}, {target.system}: {target.metric} {target.value:.3g} ({limit}){note}"
    for ratio in result.ratios:
        spread = ratio.ratio
        yield (
            f"{ratio.workload}, {ratio.metric}: {ratio.system} / {ratio.peer} = {spread.median:.2f} "
            f"({spread.low:.2f}-{spread.high:.2f})"
        )
    for name, value in result.limits.items():
        yield f"{name}: {_number(value)}"
    for missing in result.skipped:
        yield f"SKIPPED: {missing}"
    for failure in result.failures:
        yield f"FAILED: {failure}"


def write_readme(folder: Path, notes: Notes) -> None:
    """Writes README.md from every result file of a folder, of this run or of earlier ones."""
    lines = ["# Results", "", "Made by `make bench`; every figure is in the JSON files, with all repeats,"]
    lines += ["and every target in [summary.json](summary.json).", ""]
    for result in read_results(folder):
        lines += _section(result, notes)
    (folder / "README.md").write_text("\n".join(lines))


def _section(result: Result, notes: Notes) -> list[str]:
    header, *lines = _cells(result, with_ranges=True)
    machine = f"{result.machine['cpu']}, {result.machine['cores']} cores, {result.machine['memory_gb']} GB"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [
        f"## {result.scenario.capitalize()}",
        "",
        f"![{result.scenario}]({result.scenario}.svg)",
        "",
        _markdown(header),
        _markdown(["---", "---"] + ["---:"] * (len(header) - 2)),
        *(_markdown(line) for line in lines),
        "",
        *(f"- {line}" for line in verdicts(result, notes)),
        "",
        result.method,
        "Columns: core-seconds for each 1,000 requests, by the system and by the broker; requests of all rounds that "
        "were not answered once and right; cores that something else on the machine kept busy meanwhile.",
        "",
        f"`{result.command}`, {result.date}, {machine}; {versions}.",
        "",
    ]


def _cells(result: Result, *, with_ranges: bool) -> list[list[str]]:
    measured = {name for row in result.rows for name in row.metrics}
    metrics = [name for name in _METRIC_NAMES if name in measured]
    header = ["workload", "system", *(_METRIC_NAMES[name] for name in metrics)]
    header += ["core-s per 1,000", "broker's", "bad", "other cores"]
    return [header, *(_line(row, metrics, with_ranges=with_ranges) for row in result.rows)]


def _line(row: Row, metrics: Sequence[str], *, with_ranges: bool) -> list[str]:
    broker = sum(used for part, used in row.core_s_per_1000.items() if part.startswith("broker"))
    system = sum(row.core_s_per_1000.values()) - broker
    return [
        row.workload,
        row.system,
        *(_spread(row.metrics.get(name), with_range=with_ranges) for name in metrics),
        f"{system:.3f}",
        f"{broker:.3f}",
        str(row.not_answered_right),
        f"{row.other_cores:.2f}",
    ]


def _spread(spread: Spread | None, *, with_range: bool) -> str:
    if spread is None:
        return ""
    median = _number(spread.median)
    return f"{median} ({_number(spread.low)}-{_number(spread.high)})" if with_range else median


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
