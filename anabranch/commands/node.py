"""`node`: one Flink process of a cluster that spans machines or containers, in the foreground."""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anabranch.stack.errors import StackError


class ProcessKind(StrEnum):
    """What a node is in its cluster."""

    JOB_MANAGER = "job-manager"
    TASK_MANAGER = "task-manager"


def node(
    kind: Annotated[ProcessKind, typer.Argument(help="One job-manager per cluster, and any number of task-managers.")],
    job_manager: Annotated[str, typer.Option(help="Host of the JobManager, as all nodes reach it.")] = "127.0.0.1",
    listen: Annotated[str, typer.Option(help="Address to listen on. Flink has no password: keep it private.")] = (
        "127.0.0.1"
    ),
    host: Annotated[str | None, typer.Option(help="Name under which the others reach this node.")] = None,
    memory_mb: Annotated[int, typer.Option("--memory", metavar="MB", help="What its JVM may take.")] = 1536,
    slots: Annotated[int, typer.Option(min=1, help="Slots; Python is scaled by nodes, so one is best.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A Flink option; may be repeated.")
    ] = None,
) -> None:
    """Run one Flink process here, with all that Python needs set up, until it is stopped."""
    # Not at the top: `--help` should not wait for it.
    from anabranch.stack import flink_process  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix=f"anabranch-{kind}-"))
    options = {
        "jobmanager.rpc.address": job_manager,
        "jobmanager.bind-host": listen,
        "jobmanager.memory.process.size": f"{memory_mb}m",
        "rest.address": job_manager,
        "rest.bind-address": listen,
        "taskmanager.bind-host": listen,
        "taskmanager.memory.process.size": f"{memory_mb}m",
        "taskmanager.numberOfTaskSlots": str(slots),
        **flink_process.COMMON_SETTINGS,
        "io.tmp.dirs": str(folder),
        **({"taskmanager.host": host} if host else {}),
        **dict(_pair(setting) for setting in settings or []),
    }
    flink_process.write_settings(folder / "conf", options, log_to_console=True)
    command = flink_process.command(kind.value, folder / "conf", folder / f"{kind}.log")
    # The process takes our place, and with it our process id and every signal that is meant for us.
    os.execve(command[0], command, {**os.environ, **flink_process.environment()})  # noqa: S606


def _pair(setting: str) -> tuple[str, str]:
    key, sign, value = setting.partition("=")
    if not sign or not key.strip():
        raise StackError(f"--set {setting!r} is no Flink option: write KEY=VALUE")
    return key.strip(), value.strip()
