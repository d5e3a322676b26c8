"""Summaries as text: a table and verdicts for the screen, and the README of a results folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from bench.harness.analysis.measures import Spread
from bench.report.results import Row, ScenarioSummary, Target

_NO_NOTE = "no note explains this"


def table_of(summary: ScenarioSummary) -> Table:
    """Return a scenario's rows for the screen."""
    columns = list(dict.fromkeys(name for row in summary.rows for name in row.metrics))
    table = Table(title=summary.scenario, title_justify="left")
    for heading in ("workload", "system"):
        table.add_column(heading, no_wrap=True)
    headings = [name.replace("_per_s", "/s").replace("_", " ") for name in columns]
    for heading in (*headings, "core-s per 1,000", "broker's", "not right", "other cores"):
        table.add_column(heading, justify="right")
    for row in summary.rows:
        table.add_row(*_cells(row, columns))
    return table


def verdicts(summary: ScenarioSummary) -> Iterator[str]:
    """Targets, ratios, limits, skipped turns and failures, a line each."""
    for target in summary.targets:
        verdict = "met" if target.met else "MISSED"
        note = "" if target.met else f". {target.note or _NO_NOTE}"
        yield f"{verdict}: {target.workload}, {target.system}: {target.metric} {_value_of(target)}{note}"
    for ratio in summary.ratios:
        spread = ratio.ratio
        interval = "" if ratio.interval is None else "; 95 %: {:.2f}-{:.2f}".format(*ratio.interval)
        yield (
            f"{ratio.workload}, {ratio.metric}: {ratio.system} / {ratio.peer} = {spread.median:.2f} "
            f"({spread.low:.2f}-{spread.high:.2f}{interval})"
        )
    for name, value in summary.limits.items():
        yield f"{name}: {_number(value)}"
    for turn in summary.skipped:
        yield f"SKIPPED: {turn}"
    for failure in summary.failures:
        yield f"FAILED: {failure}"


def write_readme(folder: Path, summaries: Sequence[ScenarioSummary]) -> None:
    """Write README.md: every target, then each scenario's picture and origin."""
    targets = [(summary.scenario, target) for summary in summaries for target in summary.targets]
    missed = [target for _, target in targets if not target.met]
    lines = [
        "# Results",
        "",
        "Written by `python -m bench`. [summary.json](summary.json) has all figures: medians and ranges of the rounds,",
        "ratios, targets, notes, methods, settings, versions and machine. The raw runs are not in git.",
        "",
        f"{len(targets) - len(missed)} of {len(targets)} targets are met.",
        "",
        _markdown("scenario", "workload", "target", "value", ""),
        _markdown("---", "---", "---", "---:", "---"),
    ]
    lines += [
        _markdown(
            scenario,
            target.workload,
            f"{target.metric} {target.relation} {target.limit:g}",
            f"{target.value:.3g}",
            "met" if target.met else "**missed**",
        )
        for scenario, target in targets
    ]
    if missed:
        lines += ["", "## Missed targets", ""]
        lines += [f"- {each.workload}, {each.metric}: {each.note or _NO_NOTE}" for each in missed]
    for summary in summaries:
        lines += ["", *_section(summary, folder)]
    (folder / "README.md").write_text("\n".join([*lines, ""]))


def _section(summary: ScenarioSummary, folder: Path) -> Iterator[str]:
    yield f"## {summary.scenario.capitalize()}"
    yield ""
    if (folder / f"{summary.scenario}.svg").is_file():
        yield f"![{summary.scenario}]({summary.scenario}.svg)"
        yield ""
    for line in (*summary.skipped, *summary.failures):
        yield f"- {line}"
    machine = f"{summary.machine['cpu']}, {summary.machine['cores']} cores, {summary.machine['memory_gb']} GB"
    yield f"`{summary.command}` at {summary.commit}, {summary.date[:10]}, {machine}."


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    broker = sum(used for part, used in row.core_s_per_1000.items() if part.startswith("broker"))
    system = sum(row.core_s_per_1000.values()) - broker
    return [
        row.workload,
        row.system,
        *(_median(row.metrics.get(name)) for name in metrics),
        f"{system:.3f}",
        f"{broker:.3f}",
        str(row.not_answered_right),
        f"{row.other_cores:.2f}",
    ]


def _median(spread: Spread | None) -> str:
    return "" if spread is None else _number(spread.median)


def _value_of(target: Target) -> str:
    return f"{target.value:.3g} ({target.relation} {target.limit:g})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _markdown(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
