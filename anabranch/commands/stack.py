"""`up`, `down` and `status`: start, stop and show the local stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from anabranch.commands.output import JsonFlag, Output, OutputFormat, print_json
from anabranch.jobs.control import ENDED
from anabranch.jobs.health import JobHealth, healths
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import NotRunning
from anabranch.stack.flink.cluster import TASK_MANAGER_MEMORY_MB
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from anabranch.stack.gateways import GRPC_PORT, HTTP_PORT, GatewayPorts

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Folder of the stack. Default: $ANABRANCH_DATA_DIR, else .anabranch."
    ),
]
HttpPort = Annotated[
    int | None,
    typer.Option(
        "--http-port",
        min=0,
        max=65535,
        help=f"Port of HTTP; 0 takes a free one. Default: {HTTP_PORT}, or a free one if it is taken.",
    ),
]
GrpcPort = Annotated[
    int | None,
    typer.Option(
        "--grpc-port",
        min=0,
        max=65535,
        help=f"Port of gRPC; 0 takes a free one. Default: {GRPC_PORT}, or a free one if it is taken.",
    ),
]

_BAR_WIDTH = 10


def up(
    task_managers: Annotated[
        int, typer.Option(min=1, max=64, help="Number of Flink TaskManagers, with one slot each.")
    ] = (stack.DEFAULT_TASK_MANAGERS),
    kafka_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Kafka broker; 0 takes a free one.")] = (
        stack.DEFAULT_KAFKA_PORT
    ),
    flink_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of Flink's REST interface and web page; 0 takes a free one.")
    ] = stack.DEFAULT_FLINK_PORT,
    task_manager_memory_mb: Annotated[
        int, typer.Option("--task-manager-memory-mb", min=800, metavar="MB", help="Memory of each TaskManager's JVM.")
    ] = TASK_MANAGER_MEMORY_MB,
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Leave HTTP and gRPC out.")] = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
    as_json: JsonFlag = False,
) -> None:
    """Start a Kafka broker, a Flink cluster and a gateway for HTTP and gRPC on this machine.

    They run in the background until `anabranch down`. A process that ends by
    itself is started again, up to 10 times in 2 minutes. A running stack stays
    as it is; missing TaskManagers are added.
    """
    folder = stack.data_dir(data_dir)
    # Progress goes to stderr; stdout is for data.
    console = Console(stderr=True)
    with console.status("Starting the local stack") as spinner:
        found, started = stack.up(
            folder,
            task_managers=task_managers,
            kafka_port=kafka_port,
            flink_port=flink_port,
            task_manager_memory_mb=task_manager_memory_mb,
            gateway=None if no_gateway else GatewayPorts(http=http_port, grpc=grpc_port),
            progress=spinner.update,
        )
    if as_json or output is OutputFormat.JSON:
        print_json(found)
        return
    if not started:
        Console().print("The stack is already running:")
    _print_table(found)


def down(data_dir: DataDir = None) -> None:
    """Stop the local stack. Topics, checkpoints and logs stay."""
    folder = stack.data_dir(data_dir)
    try:
        with Console(stderr=True).status("Stopping the local stack"):
            stack.down(folder)
    except NotRunning as error:
        Console().print(f"{error}: nothing to stop.", soft_wrap=True)
        return
    Console().print(f"Stopped. Topics and logs stay in {folder}.", soft_wrap=True)


def status(data_dir: DataDir = None, output: Output = OutputFormat.TABLE, as_json: JsonFlag = False) -> None:
    """Show the local stack: addresses, processes, jobs, and the tasks of each TaskManager.

    Exit code 3 if the stack does not run.
    """
    found = stack.status(stack.data_dir(data_dir))
    health = healths(FlinkRest(found.flink_url), found.jobs) if found.flink_url else []
    if as_json or output is OutputFormat.JSON:
        print_json({**msgspec.to_builtins(found), "health": health})
    elif found.flink_url is None:
        Console().print(f"No stack runs in {found.data_dir}: start one with `anabranch up`.", soft_wrap=True)
    else:
        _print_table(found, health)
    if not found.running:
        raise typer.Exit(3)


def _print_table(found: stack.StackStatus, health: Sequence[JobHealth] = ()) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("Kafka", found.bootstrap_servers)
    table.add_row("Flink", found.flink_url)
    for door in found.gateways:
        table.add_row("HTTP", door.http_url)
        table.add_row("gRPC", door.grpc_url)
    pids = [("broker", found.broker_pid), ("job manager", found.job_manager_pid)]
    pids += [("task manager", pid) for pid in found.task_manager_pids]
    pids += [(door.name, door.pid) for door in found.gateways]
    pids += [("supervisor", found.supervisor_pid)]
    table.add_row("Processes", ", ".join(f"{name} {pid}" for name, pid in pids if pid))
    for name in found.gone:
        table.add_row("[red]Ended[/]", _remedy(found, name))
    for name, restarts in found.restarts.items():
        if restarts.count:
            table.add_row("Restarted", f"{name}, {restarts.count} times: read `anabranch logs {name}`")
    for job in shown_jobs(found.jobs):
        table.add_row("Job", f"{job.name}  {job.state}  {job.job_id}")
    if others := len(found.jobs) - len(shown_jobs(found.jobs)):
        table.add_row("Ended", f"{others} earlier: `anabranch jobs` lists them")
    for job_health in health:
        now_ms = time.time() * 1000
        table.add_row("Checkpoint", escape(f"{job_health.name}  {job_health.checkpoints.summary(now_ms)}"))
        if restarted := job_health.restarted(now_ms):
            table.add_row("Restarted", escape(f"{job_health.name}  {restarted}"))
        for line in job_health.troubles(now_ms):
            table.add_row("[red]Trouble[/]", escape(f"{job_health.name}: {line}"))
    table.add_row("Data", found.data_dir)
    console = Console()
    console.print(table)
    if found.workers:
        console.print(picture(found))


def shown_jobs(jobs: Sequence[FlinkJob]) -> Sequence[FlinkJob]:
    """Return the jobs that have not ended, else the newest; `jobs` begins with the newest."""
    return [job for job in jobs if job.state not in ENDED] or jobs[:1]


def _remedy(found: stack.StackStatus, name: str) -> str:
    if name in found.restarts and found.restarts[name].given_up:
        return (
            f"{name}: stays down after {found.restarts[name].count} restarts; "
            f"read `anabranch logs {name}`, then run `anabranch up`"
        )
    if found.supervisor_pid:
        return f"{name}: starts again in seconds"
    return f"{name}: run `anabranch up`"


def picture(found: stack.StackStatus) -> Tree:
    """Draw the JobManager, its TaskManagers and their tasks as a tree."""
    tree = Tree(Text.assemble(("JobManager", "bold"), f"  process {found.job_manager_pid}"))
    several = len({task.job for worker in found.workers for task in worker.tasks}) > 1
    for worker in found.workers:
        used = worker.slots - worker.free_slots
        branch = tree.add(Text.assemble((worker.name, "bold"), f"  {used} of {worker.slots} slots taken"))
        tasks = Table(show_header=False, box=None, pad_edge=False)
        tasks.add_column(overflow="fold")
        tasks.add_column(justify="right", no_wrap=True)
        tasks.add_column(no_wrap=True)
        tasks.add_column(overflow="fold", style="dim")
        for task in worker.tasks:
            name = f"{task.job}: {task.operator}" if several else task.operator
            number = f"task {task.task} of {task.tasks}" if task.tasks > 1 else ""
            holds = f"whole models: {', '.join(task.models)}" if task.models else ""
            tasks.add_row(name, number, _busy(task.busy), holds)
        if worker.tasks:
            branch.add(tasks)
    return tree


def _busy(part: float | None) -> Text:
    if part is None:
        return Text("")
    filled = round(part * _BAR_WIDTH)
    colour = "red" if part > 0.9 else "yellow" if part > 0.6 else "green"
    return Text.assemble(("█" * filled, colour), ("░" * (_BAR_WIDTH - filled), "dim"), f" {part:4.0%} busy")
