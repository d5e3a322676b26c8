"""The command line. Each command is a function of `anabranch.commands`, registered here.

A command imports what is heavy (PyFlink, Kafka, ONNX Runtime) when it runs, so that `--help` is there at once.
"""

from __future__ import annotations

import signal
import sys

import typer
from rich.console import Console

from anabranch.client_errors import ClientError
from anabranch.commands import stack
from anabranch.commands.demo import demo
from anabranch.commands.import_model import import_model
from anabranch.commands.infer import infer
from anabranch.commands.node import node
from anabranch.commands.plan import plan
from anabranch.commands.run import run
from anabranch.commands.top import top
from anabranch.errors import StackError
from anabranch.flink_job.config import ConfigError
from anabranch.flink_job.installation import InstallationError
from anabranch.importing.errors import ImportFailed
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.partition.errors import PartitionError
from anabranch.schemas.errors import AnabranchError

# What a person can do something about: shown in one line. Anything else is a bug, and shown in full.
_EXPECTED = (
    StackError,
    InstallationError,
    ConfigError,
    ModelLoadFailed,
    PartitionError,
    ClientError,
    AnabranchError,
    ImportFailed,
)

app = typer.Typer(
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
app.command()(top)
app.command("import")(import_model)
app.command()(demo)
app.command()(node)


def main() -> None:
    """Runs the command line; known errors are one line on stderr and exit code 1, Ctrl-C is 130."""
    # A plain `kill` shall clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except _EXPECTED as error:
        line = f"{type(error).__name__}: {error}"
        Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
