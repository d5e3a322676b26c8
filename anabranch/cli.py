"""The command line. Each command is a function of `anabranch.commands`, registered here.

Commands import PyFlink, Kafka and ONNX Runtime when they run, so that `--help` is printed at once.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from anabranch.commands import jobs, stack
from anabranch.commands.demo import demo
from anabranch.commands.errors import errors
from anabranch.commands.flow import flow, try_flow
from anabranch.commands.gateway import gateway
from anabranch.commands.infer import infer
from anabranch.commands.logs import logs
from anabranch.commands.process import process
from anabranch.commands.repository.import_model import import_model
from anabranch.commands.repository.models import models
from anabranch.commands.repository.plan import plan
from anabranch.commands.repository.prepare import prepare
from anabranch.commands.run import run
from anabranch.commands.top import top
from anabranch.commands.upgrade import rescale, upgrade
from anabranch.schemas.errors import AnabranchError


class _Commands(TyperGroup):
    """All commands. Prints an `AnabranchError` as one line on stderr and exits with code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AnabranchError as error:
            line = f"{error.code}: {error}"
            Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_show_locals=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from anabranch import __version__  # noqa: PLC0415 - reads the package's metadata

        typer.echo(f"anabranch {__version__}")
        raise typer.Exit


@app.callback()
def anabranch(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Streaming, distributed, parallel deep-learning inference on Apache Flink.

    First steps: `anabranch up` starts Kafka and Flink on this machine,
    `anabranch run` serves the models of a folder, `anabranch infer` sends a
    request, `anabranch top` shows the load, and `anabranch down` stops it all.
    """


app.command()(stack.up)
app.command()(stack.down)
app.command()(stack.status)
app.command()(run)
app.command()(jobs.jobs)
app.command()(jobs.stop)
app.command()(jobs.savepoint)
app.command()(jobs.cancel)
app.command()(rescale)
app.command()(upgrade)
app.command()(models)
app.command()(infer)
app.command()(gateway)
app.add_typer(errors, name="errors")
app.add_typer(flow, name="flow")
app.command("try")(try_flow)
app.command()(plan)
app.command()(prepare)
app.command()(top)
app.command()(logs)
app.command("import")(import_model)
app.command()(demo)
app.command()(process)


def main() -> None:
    """Run the command line. SIGTERM cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app()
