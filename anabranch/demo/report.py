"""The figures of a demo, as data and as tables."""

from collections.abc import Mapping, Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.demo.error_check import ErrorOutcome

_TYPES_SHOWN = 15
_PROBLEMS_SHOWN = 10


class Figures(msgspec.Struct, kw_only=True):
    """Figures of one demo, as `--figures` writes them.

    Attributes:
        requests: Valid requests: one for each file, the paced ones, those over HTTP, and the large one.
        answered: Requests that were answered with outputs.
        mismatches: Rows that differ from a direct ONNX Runtime run by more than 1e-5.
        errors_answered: Bad requests with the expected error.
        shards, tasks: Shards of the large request, and inference tasks that ran them.
        throughput_rps: Requests a second, with `in_flight` pending.
        p50_ms, p95_ms, p99_ms: Latency at the steady pace, from the due time.
        saturated_p50_ms: Latency at full throughput, nearly all of it queueing.
        files: Files that were read.
        files_by_rule: Files that need no model.
        files_unread: Files and folders that could not be read.
        magika_agreements: Files, of `magika_compared`, with the same label from Magika.
        error_codes: The code in the dead letter of each kind of bad request.
    """

    requests: int
    answered: int
    mismatches: int
    errors_sent: int
    errors_answered: int
    shards: int
    tasks: int
    throughput_rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    paced_requests: int
    paced_rps: float
    http_requests: int
    http_rps: float
    in_flight: int
    saturated_p50_ms: float
    large_rows: int
    large_latency_ms: float
    files: int
    files_by_rule: int
    files_unread: int
    magika_compared: int
    magika_agreements: int
    types: dict[str, int]
    error_codes: dict[str, str]
    seconds: dict[str, float]
    problems: list[str]

    @property
    def succeeded(self) -> bool:
        """True if every answer is there and right."""
        return (
            self.answered == self.requests
            and self.mismatches == 0
            and self.errors_answered == self.errors_sent
            and not self.problems
        )

    def to_json(self) -> bytes:
        """Encode the figures as an indented JSON object."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"


def print_report(
    console: Console, figures: Figures, outcomes: Sequence[ErrorOutcome], *, show_bad_requests: bool = False
) -> None:
    """Print the result, then the bad requests.

    Args:
        show_bad_requests: Lists all bad requests, not only those without the expected error.
    """
    console.print(_types_table(figures.types), _figures_table(figures), sep="\n")
    listed = outcomes if show_bad_requests else [outcome for outcome in outcomes if outcome.problem]
    for problem in figures.problems[:_PROBLEMS_SHOWN]:
        console.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
    if len(figures.problems) > _PROBLEMS_SHOWN:
        console.print(f"[red]… and {len(figures.problems) - _PROBLEMS_SHOWN:,} more[/]")
    verdict = (
        "[bold green]Every answer is right.[/]" if figures.succeeded else "[bold red]Not every answer is right.[/]"
    )
    console.print(verdict)
    if listed:
        console.print(_errors_table(listed))


def _types_table(types: Mapping[str, int]) -> Table:
    table = Table("type", title="Files by type", title_justify="left")
    table.add_column("files", justify="right")
    for name, count in list(types.items())[:_TYPES_SHOWN]:
        table.add_row(escape(name), f"{count:,}")
    rest = list(types.values())[_TYPES_SHOWN:]
    if rest:
        table.add_row(f"[dim]{len(rest)} more types[/]", f"{sum(rest):,}")
    return table


def _errors_table(outcomes: Sequence[ErrorOutcome]) -> Table:
    table = Table("bad request", "error", "found in", title="Bad requests", title_justify="left")
    for outcome in outcomes:
        code = f"[red]{escape(outcome.problem)}[/]" if outcome.problem else outcome.code
        table.add_row(
            escape(outcome.request.kind), code, "answer, dead letter" if outcome.request.id else "dead letter"
        )
    return table


def _figures_table(figures: Figures) -> Table:
    table = Table(show_header=False, title="Figures", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    compared = figures.requests - 1 + figures.large_rows
    rows = {
        "requests": f"{figures.answered:,} of {figures.requests:,} answered",
        "equal to a direct ONNX Runtime run": f"{compared - figures.mismatches:,} of {compared:,} rows, within 1e-5",
        "equal to Magika's own answer": f"{figures.magika_agreements:,} of {figures.magika_compared:,} files",
        "errors": f"{figures.errors_answered} of {figures.errors_sent} bad requests have the expected error",
        "one large request": (
            f"{figures.large_rows:,} rows in {figures.shards} shards over {figures.tasks} tasks, merged in order, "
            f"in {figures.large_latency_ms / 1000:.1f} s"
        ),
        "throughput": f"{figures.throughput_rps:.0f} requests/s with {figures.in_flight} in flight",
        "over HTTP": f"{figures.http_rps:.0f} requests/s ({figures.http_requests:,} requests to the gateway)",
        "latency": (
            f"p50 {figures.p50_ms:.1f}, p95 {figures.p95_ms:.1f}, p99 {figures.p99_ms:.1f} ms "
            f"at a steady {figures.paced_rps:.0f} requests/s ({figures.paced_requests:,} requests)"
        ),
        "latency at full throughput": (
            f"p50 {figures.saturated_p50_ms:.0f} ms: with {figures.in_flight} in flight, nearly all of it is queueing"
        ),
        "took": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in figures.seconds.items()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
