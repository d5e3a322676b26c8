"""Output formats of the commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

#: Options of a console that prints a text as it is.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


class OutputFormat(StrEnum):
    """Format of the data that a command prints on standard output."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Print a table for people, or JSON for programs.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Short form of `-o json`.")]


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    typer.echo(msgspec.json.encode(value).decode())
