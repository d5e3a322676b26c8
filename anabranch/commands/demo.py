"""`demo`: streams files through a real model and checks every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anabranch.commands.output import Output, OutputFormat

_DEFAULT_LIMIT = 10_000


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of files to stream. Default: Python's standard library.",
        ),
    ] = None,
    figures_path: Annotated[
        Path | None, typer.Option("--figures", metavar="FILE", dir_okay=False, help="Write the figures as JSON, too.")
    ] = None,
    task_managers: Annotated[
        int, typer.Option(min=1, max=64, help="Inference tasks, one in each Flink TaskManager.")
    ] = 2,
    limit: Annotated[int, typer.Option(min=0, help="Number of files at most; 0 for all.")] = _DEFAULT_LIMIT,
    show_bad_requests: Annotated[
        bool, typer.Option("--show-bad-requests", help="List the bad requests and their error codes, too.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Stream files through Magika's model on a local Kafka broker and Flink cluster, and check every answer.

    Needs no running stack, leaves nothing running, and takes about a minute.
    Exit code 1 if an answer is missing or wrong.
    """
    console = Console(stderr=output is OutputFormat.JSON)
    from anabranch.demo.report import print_report  # noqa: PLC0415 - only this command needs them
    from anabranch.demo.run import Demo  # noqa: PLC0415

    try:
        figures, outcomes = Demo(console, folder, limit, task_managers).run()
    except KeyboardInterrupt:
        console.print("Interrupted; everything that was started is stopped.")
        raise typer.Exit(130) from None
    if output is OutputFormat.JSON:
        typer.echo(figures.to_json(), nl=False)
    else:
        print_report(console, figures, outcomes, show_bad_requests=show_bad_requests)
    if figures_path:
        figures_path.write_bytes(figures.to_json())
    if not figures.succeeded:
        raise typer.Exit(1)
