"""`errors list`, `show` and `replay`: dead letters."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anabranch.commands.infer import StackServers, TopicsConfig, client_config
from anabranch.commands.output import PLAIN, Output, OutputFormat, print_json
from anabranch.commands.stack import DataDir
from anabranch.errors import AnabranchError, UnusableArgument

if TYPE_CHECKING:
    from anabranch.dead_letters import DeadLetters, ListedLetter

_MESSAGE_CHARACTERS = 200

errors = typer.Typer(no_args_is_help=True, help="Show failed requests, and send them again.")

_Codes = Annotated[
    list[str] | None, typer.Option("--code", metavar="CODE", help="Only letters with this code; may be repeated.")
]
_Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME", help="Only letters of this model; may be repeated.")
]
_Limit = Annotated[int, typer.Option(min=1, help="Number of letters at most, the newest.")]


@errors.command("list")
def list_letters(
    codes: _Codes = None,
    models: _Models = None,
    limit: _Limit = 20,
    bootstrap_servers: StackServers = None,
    config_path: TopicsConfig = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the last dead letters, the newest first.

    anabranch errors list --code overloaded
    """
    from anabranch.dead_letters import LetterFilter  # noqa: PLC0415 - `--help` must be quick

    with _opened(config_path, bootstrap_servers, data_dir) as topic, Console(stderr=True).status("Reading letters"):
        found = topic.last(limit, LetterFilter(codes=codes or (), models=models or ()))
    if output is OutputFormat.JSON:
        print_json(found)
    elif not found:
        Console().print("No dead letters.")
    else:
        Console().print(_table(found))


@errors.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="Id of a letter, as `errors list` prints it.")],
    save: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write the bytes of the request to a file or standard output.")
    ] = None,
    bootstrap_servers: StackServers = None,
    config_path: TopicsConfig = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show one dead letter, and save its request.

    anabranch errors show 0-17 --save request.bin
    """
    with _opened(config_path, bootstrap_servers, data_dir) as topic:
        found = topic.find(letter)
        value = topic.original(letter).value if save else b""
    if save == "-":
        sys.stdout.buffer.write(value)
        return
    if save:
        try:
            Path(save).write_bytes(value)
        except OSError as error:
            raise UnusableArgument(f"cannot write {save} ({error.strerror}): choose another file") from None
    if output is OutputFormat.JSON:
        print_json(found)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(found).items():
        table.add_row(name, Text(text))
    Console().print(table)


@errors.command()
def replay(
    letters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Letters. Default: those that --code or --model choose."),
    ] = None,
    codes: _Codes = None,
    models: _Models = None,
    limit: _Limit = 100,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send without asking.")] = False,
    bootstrap_servers: StackServers = None,
    config_path: TopicsConfig = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Send the requests of dead letters again, after their cause is mended.

    A request keeps its id, key and headers, so that its sender gets the answer
    if it still listens. Its deadline counts anew. Exit code 1 if one was not sent.

      anabranch errors replay --code unknown_model --yes
    """
    from anabranch.dead_letters import LetterFilter  # noqa: PLC0415 - `--help` must be quick

    if bool(letters) == bool(codes or models):
        raise UnusableArgument("give ids of letters, or choose them with --code or --model")
    console = Console(stderr=True)
    with _opened(config_path, bootstrap_servers, data_dir) as topic:
        if letters:
            found = [topic.find(each) for each in dict.fromkeys(letters)]
        else:
            found = topic.last(limit, LetterFilter(codes=codes or (), models=models or ()))
        console.print(_plan(found), **PLAIN)
        if found and not yes:
            typer.confirm("Send again?", abort=True, err=True)
        outcomes = [(letter, _send(topic, letter)) for letter in reversed(found)]
    if output is OutputFormat.JSON:
        print_json([{"id": letter.id, "sent": not problem, "problem": problem} for letter, problem in outcomes])
    else:
        for letter, problem in outcomes:
            said = f"not sent: {problem}" if problem else "sent again"
            Console().print(f"{letter.id} {letter.request_id} {said}", **PLAIN)
    if any(problem for _, problem in outcomes):
        raise typer.Exit(1)


@contextmanager
def _opened(config_path: Path | None, bootstrap_servers: str | None, data_dir: Path | None) -> Iterator[DeadLetters]:
    from anabranch.dead_letters import open_letters  # noqa: PLC0415 - imports Kafka

    with open_letters(client_config(config_path, bootstrap_servers, data_dir)) as topic:
        yield topic


def _send(topic: DeadLetters, letter: ListedLetter) -> str:
    try:
        topic.replay(letter.id)
    except AnabranchError as error:
        return error.message
    return ""


def _plan(found: Sequence[ListedLetter]) -> str:
    """Say what is sent."""
    counts = ", ".join(f"{count} {code}" for code, count in Counter(each.code for each in found).most_common())
    hopeless = sum(not each.is_curable for each in found)
    warning = f"; {hopeless} of them fail again unless their senders change them" if hopeless else ""
    return f"{len(found)} requests to send again{f': {counts}' if counts else ''}{warning}."


def _table(found: Sequence[ListedLetter]) -> Table:
    table = Table("id", "time", "code", "model", "request", "cause")
    for each in found:
        message = each.message[:_MESSAGE_CHARACTERS]
        table.add_row(each.id, _time(each.time_ms), each.code, Text(each.model), Text(each.request_id), Text(message))
    return table


def _rows(letter: ListedLetter) -> dict[str, str]:
    source = letter.source
    size = "not in the letter" if letter.original_bytes is None else f"{letter.original_bytes:,} bytes"
    return {
        "id": letter.id,
        "time": _time(letter.time_ms),
        "request": letter.request_id or "without id",
        "code": letter.code,
        "cause": letter.message,
        "failed in": letter.stage,
        "model": letter.model or "unknown",
        "record": f"{source.topic} {source.partition}-{source.offset}, {_time(source.timestamp_ms)}",
        "request size": size,
        "replay": "may succeed once its cause is mended" if letter.is_curable else "fails again, unless it is changed",
    }


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
