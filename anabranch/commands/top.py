"""`top`: shows rates and latency of a running job, refreshed at an interval."""

from __future__ import annotations

from time import sleep
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from anabranch.commands.output import JsonFlag, Output, OutputFormat, print_json
from anabranch.commands.stack import DataDir
from anabranch.jobs.activity import JobActivity, rate_text
from anabranch.jobs.watch import JobWatch
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import NotRunning
from anabranch.stack.flink.rest import FlinkRest

_COLOURS = ("grey62", "cyan", "yellow", "magenta", "green", "blue", "red")
_BAR_WIDTH = 36


def top(
    flink_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST address of Flink. Default: the local stack's.")
    ] = None,
    interval_s: Annotated[float, typer.Option("--interval-s", min=1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one interval and exit.")] = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
    as_json: JsonFlag = False,
) -> None:
    """Show each model's rates, latency and time per phase, until Ctrl-C.

    JSON is one object for each interval, on a line of its own.
    """
    if flink_url is None:
        flink_url = stack.status(stack.data_dir(data_dir)).flink_url
    if flink_url is None:
        raise NotRunning("no local stack runs: start one with `anabranch up`, or name a cluster with --flink-url")
    watch = _Watch(FlinkRest(flink_url), interval_s)
    console = Console()
    if as_json or output is OutputFormat.JSON:
        _print_lines(watch, once=once)
        return
    if once:
        with Console(stderr=True).status(f"Watching for {interval_s:g} s"):
            seen = watch.next()
        console.print(_picture(seen))
        return
    with Live(Text("Waiting for the first figures"), console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(_picture(watch.next()), refresh=True)
        except KeyboardInterrupt:
            return


def _print_lines(watch: _Watch, *, once: bool) -> None:
    try:
        print_json(watch.next())
        while not once:
            print_json(watch.next())
    except KeyboardInterrupt:
        return


class _Watch:
    """Looks at a job at an interval."""

    def __init__(self, flink: FlinkRest, interval_s: float) -> None:
        self._watch = JobWatch(flink)
        self._interval_s = interval_s
        self._watch.look()

    def next(self) -> JobActivity:
        """Return the activity since the last call, after one interval."""
        while True:
            sleep(self._interval_s)
            if (seen := self._watch.look()) is not None:
                return seen


def _picture(seen: JobActivity) -> RenderableType:
    if not seen.models and not seen.errors_per_s and not seen.clocks:
        return Text(f"No request was answered in the last {seen.seconds:.0f} s.")
    table = Table("model", "requests/s", "rows/s", "rows a batch", "p50 ms", "p99 ms", "where the time goes")
    for column in table.columns[1:6]:
        column.justify = "right"
    for rate in seen.models:
        table.add_row(
            rate.model,
            rate_text(rate.requests_per_s),
            rate_text(rate.rows_per_s),
            f"{rate.batch_rows:.1f}",
            f"{rate.p50_ms:.1f}",
            f"{rate.p99_ms:.1f}",
            _bar(rate.stage_ms),
        )
    legend = Text("  ").join(Text(f"█ {stage}", style=colour) for stage, colour in zip(PHASES, _COLOURS, strict=True))
    errors = [Text(f"{code}: {rate:,.1f} a second", style="red") for code, rate in seen.errors_per_s.items()]
    clocks = [Text(skew.line, style="yellow") for skew in seen.clocks]
    return Group(table, legend, *errors, *clocks)


def _bar(stage_ms: dict[str, float]) -> Text:
    whole_ms = sum(stage_ms.values()) or 1.0
    bar = Text()
    for stage, colour in zip(PHASES, _COLOURS, strict=True):
        bar.append("█" * round(_BAR_WIDTH * stage_ms[stage] / whole_ms), style=colour)
    bar.append(f" {whole_ms:.1f} ms")
    return bar
