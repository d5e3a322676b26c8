"""Rules for the options and help texts of all commands."""

import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from anabranch.cli import app

UNITS = ("_ms", "_s", "_mb", "_bytes")
#: Floats without a unit.
RATIOS = {"trace_share", "tolerance"}
QUANTITIES = re.compile(r"time|deadline|interval|delay|memory|size|age\b|duration|wait")


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def units_missing(function: Callable[..., object]) -> list[str]:
    """Returns the arguments of times and sizes whose names lack a unit."""
    hints = typing.get_type_hints(function)
    return [
        name
        for name, hint in hints.items()
        if name not in {"return", *RATIOS}
        and not name.endswith(UNITS)
        and (float in (hint, *typing.get_args(hint)) or (hint is not bool and QUANTITIES.search(name)))
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_quantities_have_units_in_names(name: str) -> None:
    command = COMMANDS[name]
    assert units_missing(command.callback.__wrapped__) == []
    for option in command.params:
        if option.name.endswith(UNITS):
            assert f"--{option.name.replace('_', '-')}" in option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_is_plain(name: str) -> None:
    command = COMMANDS[name]
    texts = [command.help.strip().split("\n\n")[0]]
    texts += [option.help for option in command.params if option.name != "help"]
    for text in texts:
        assert re.match(r"[A-Z1.$]", text), text
        assert not re.match(r"(who|what|where|when|how|which)\b", text, re.IGNORECASE), text
        assert text.endswith("."), text


def test_units_missing_argument_without_unit_is_found() -> None:
    def command(timeout: int, pause: float | None, pause_s: float, tolerance: float, sample: bool) -> None: ...

    assert units_missing(command) == ["timeout", "pause"]
