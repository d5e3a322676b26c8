"""`demo`: real files through a real model, with every answer checked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

_DEFAULT_LIMIT = 10_000


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Stream the files of this folder. Default: the standard library of the running Python.",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the figures there, too.")
    ] = None,
    task_managers: Annotated[
        int, typer.Option(min=1, max=64, help="Inference tasks, each in a Flink TaskManager process of its own.")
    ] = 2,
    limit: Annotated[int, typer.Option(min=0, help="Stream at most so many files; 0 for all.")] = _DEFAULT_LIMIT,
) -> None:
    """Stream every file of a folder through Magika's model, on a local broker and Flink cluster, and check each answer.

    Exit code 1 when an answer is missing or wrong.
    """
    console = Console()
    if importlib.util.find_spec("magika") is None:
        console.print("[red]The demo streams files through Magika's model: run `make setup`, or install magika.[/]")
        raise typer.Exit(1)
    from anabranch.demo.report import print_report  # noqa: PLC0415 - the other commands need neither model nor client
    from anabranch.demo.run import Demo  # noqa: PLC0415

    try:
        figures, outcomes = Demo(console, folder, limit, task_managers).run()
    except KeyboardInterrupt:
        console.print("Interrupted; everything that was started is stopped.")
        raise typer.Exit(130) from None
    print_report(console, figures, outcomes)
    if json_path:
        json_path.write_bytes(figures.to_json())
    if not figures.succeeded:
        raise typer.Exit(1)
