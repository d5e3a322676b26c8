"""The command line. Each command is a function of `anabranch.commands`, registered here.

A command imports what is heavy (PyFlink, Kafka, ONNX Runtime) when it runs, so that `--help` is there at once.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from anabranch.commands import stack
from anabranch.commands.demo import demo
from anabranch.commands.import_model import import_model
from anabranch.commands.infer import infer
from anabranch.commands.node import node
from anabranch.commands.plan import plan
from anabranch.commands.prepare import prepare
from anabranch.commands.run import run
from anabranch.commands.top import top
from anabranch.schemas.errors import AnabranchError


class _Commands(TyperGroup):
    """The commands; an `AnabranchError` of any of them is one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AnabranchError as error:
            line = f"{error.code}: {error}"
            Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Streaming, distributed, parallel deep-learning inference on Apache Flink.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(stack.up)
app.command()(stack.down)
app.command()(stack.status)
app.command()(run)
app.command()(infer)
app.command()(plan)
app.command()(prepare)
app.command()(top)
app.command("import")(import_model)
app.command()(demo)
app.command()(node)


def main() -> None:
    """Runs the command line. A plain `kill` cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app()
