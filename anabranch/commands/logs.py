"""`logs`: shows the logs of the local stack's processes, the job's errors first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import sleep
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.commands.stack import DataDir
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.process_logs import LogEntry, LogFollower, log_files, read_errors, read_tails

_ERRORS_SHOWN = 3
#: A longer run of Java's stack frames is cut to this length in a table.
_FRAMES_SHOWN = 5
_POLL_S = 0.3


class ShownEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One or more lines of a log.

    Attributes:
        kind: `job_failure`: exception of a job; `error`: entry of a process with its traceback; `line`: one line.
        source: The process, or `job NAME`.
        text: The lines.
    """

    kind: Literal["job_failure", "error", "line"]
    source: str
    text: str


def logs(
    process: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROCESS]...", help="Processes: broker, job-manager, task-manager-1, and so on. Default: all."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of last lines of each process.")] = 10,
    errors: Annotated[bool, typer.Option("--errors", help="Print only errors, all of them.")] = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show the logs of the local stack: the job's errors first, then the last lines of each process.

    Errors are the exceptions that Flink reports for its jobs, and the error
    entries of the processes with their tracebacks. The logs of a stopped stack
    are shown, too. JSON is one object for each error or line.

      anabranch logs task-manager-1 -f
    """
    folder = stack.data_dir(data_dir)
    chosen = process or ()
    files = log_files(folder / "logs", chosen)
    follower = LogFollower(folder / "logs", chosen, errors_only=errors)
    status = stack.status(folder)
    show = _print_as_json if output is OutputFormat.JSON else _print
    if not chosen or "job-manager" in chosen:
        show(job_failures(status))
    show(_shown("error", read_errors(files, None if errors else _ERRORS_SHOWN)))
    if not errors:
        show(_shown("line", read_tails(files, lines)))
    if not status.running:
        Console(stderr=True, soft_wrap=True).print(
            f"No stack runs in {folder}; these are its last logs: start one with `anabranch up`."
        )
    try:
        while follow:
            show(_shown("line", follower.read()))
            sleep(_POLL_S)
    except KeyboardInterrupt:
        return


def job_failures(status: stack.StackStatus) -> Iterator[ShownEntry]:
    """Yield the last failure of each job that the running cluster remembers."""
    if status.flink_url is None or status.job_manager_pid is None:
        return
    rest = FlinkRest(status.flink_url)
    for job in status.jobs:
        try:
            stacktrace = rest.last_failure(job.job_id).strip()
        except StackError:
            # The cluster ended or forgot the job.
            continue
        if stacktrace:
            yield ShownEntry(kind="job_failure", source=f"job {job.name}", text=f"{job.state}: {stacktrace}")


def _shown(kind: Literal["error", "line"], entries: Iterable[LogEntry]) -> Iterator[ShownEntry]:
    return (ShownEntry(kind=kind, source=entry.process, text=entry.text) for entry in entries)


def _print_as_json(entries: Iterable[ShownEntry]) -> None:
    for entry in entries:
        print_json(entry)


def _print(entries: Iterable[ShownEntry]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for entry in entries:
        is_line = entry.kind == "line"
        style = "cyan" if is_line else "bold red"
        for line in [entry.text] if is_line else _shortened(entry.text.splitlines()):
            console.print(Text.assemble((f"{entry.source} | ", style), line.expandtabs(4)))


def _shortened(lines: Iterable[str]) -> Iterator[str]:
    """Cut long runs of Java's stack frames."""
    frames = 0
    for line in lines:
        if line.startswith(("\tat ", "\t... ")):
            frames += 1
        else:
            yield from _left_out(frames)
            frames = 0
        if frames <= _FRAMES_SHOWN:
            yield line
    yield from _left_out(frames)


def _left_out(frames: int) -> Iterator[str]:
    if frames > _FRAMES_SHOWN:
        yield f"\t... {frames - _FRAMES_SHOWN} frames: see --output json"
