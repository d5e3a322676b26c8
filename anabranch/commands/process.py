"""`process`: one Flink process of a cluster that spans machines or containers, in the foreground."""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anabranch.errors import UnusableArgument


class ProcessKind(StrEnum):
    """Role of a process in its cluster."""

    JOB_MANAGER = "job-manager"
    TASK_MANAGER = "task-manager"


def process(
    kind: Annotated[ProcessKind, typer.Argument(help="A cluster has one job-manager and any number of task-managers.")],
    job_manager: Annotated[
        str, typer.Option(metavar="HOST", help="Host of the JobManager, as all processes reach it.")
    ] = "127.0.0.1",
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. Flink has no password: keep it private.")
    ] = "127.0.0.1",
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Host of this process, as the others reach it.")
    ] = None,
    memory_mb: Annotated[int, typer.Option("--memory-mb", min=1, metavar="MB", help="Memory of its JVM.")] = 1536,
    slots: Annotated[
        int, typer.Option(min=1, help="Task slots. Slots share one Python interpreter: start more processes instead.")
    ] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Flink option; may be repeated.")
    ] = None,
) -> None:
    """Run one Flink process in the foreground, ready for jobs in Python.

    Use it to build a cluster over several machines or containers:

      anabranch process job-manager --job-manager master --listen 0.0.0.0

      anabranch process task-manager --job-manager master --listen 0.0.0.0 --host worker-1
    """
    from anabranch.stack.flink import process as flink_process  # noqa: PLC0415 - `--help` must be quick

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
    # Replaces this process, so that signals reach the JVM directly.
    os.execve(command[0], command, {**os.environ, **flink_process.environment()})  # noqa: S606


def _pair(setting: str) -> tuple[str, str]:
    key, sign, value = setting.partition("=")
    if not sign or not key.strip():
        raise UnusableArgument(f"--set {setting!r} is not a Flink option: write KEY=VALUE")
    return key.strip(), value.strip()
