"""`jobs`, `stop`, `savepoint` and `cancel`: the jobs of a cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.commands.stack import DataDir
from anabranch.jobs.control import JobControl, JobSummary
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import NotRunning
from anabranch.stack.flink.rest import FlinkRest

FlinkUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="REST address of the Flink cluster. Default: the local stack's.")
]
JobName = Annotated[str | None, typer.Argument(help="Name or id of the job. Default: the only one that runs.")]


def cluster_url(flink_url: str | None, data_dir: Path | None) -> str:
    """Return the given URL, or the local stack's.

    Raises:
        NotRunning: There is neither.
    """
    url = flink_url or stack.status(stack.data_dir(data_dir)).flink_url
    if url is None:
        raise NotRunning("no local stack runs: start one with `anabranch up`, or name a cluster with --flink-url")
    return url


def jobs(flink_url: FlinkUrl = None, data_dir: DataDir = None, output: Output = OutputFormat.TABLE) -> None:
    """List the jobs of a cluster, with their last checkpoints and the state they started from."""
    found = JobControl(FlinkRest(cluster_url(flink_url, data_dir))).summaries()
    if output is OutputFormat.JSON:
        print_json(found)
    elif not found:
        Console().print("No jobs: start one with `anabranch run`.")
    else:
        Console().print(_table(found))


def stop(
    job: JobName = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Answer all requests that were read first; otherwise the next run does.")
    ] = False,
    flink_url: FlinkUrl = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Stop a job with a savepoint, from which the next `anabranch run` continues.

    Nothing is lost, and nothing is answered twice:

      anabranch stop

      anabranch run --model-repository models
    """
    control = JobControl(FlinkRest(cluster_url(flink_url, data_dir)))
    found = control.find(job)
    with Console(stderr=True).status("Stopping the job"):
        path = control.stop(found, drain=drain)
    if output is OutputFormat.JSON:
        print_json({"job_id": found.job_id, "name": found.name, "savepoint": path})
        return
    rest = "All requests that were read are answered." if drain else "Waiting requests are in its savepoint."
    Console().print(f"Stopped {found.name}. {rest}\n{path}", soft_wrap=True, highlight=False)


def savepoint(
    job: JobName = None, flink_url: FlinkUrl = None, data_dir: DataDir = None, output: Output = OutputFormat.TABLE
) -> None:
    """Take a savepoint of a job, which goes on. It is yours: no job removes it.

    Start from it with `anabranch run --from PATH`.
    """
    control = JobControl(FlinkRest(cluster_url(flink_url, data_dir)))
    found = control.find(job)
    with Console(stderr=True).status("Taking a savepoint"):
        path = control.savepoint(found)
    if output is OutputFormat.JSON:
        print_json({"job_id": found.job_id, "name": found.name, "savepoint": path})
    else:
        Console().print(path, soft_wrap=True, highlight=False)


def cancel(
    job: JobName = None, flink_url: FlinkUrl = None, data_dir: DataDir = None, output: Output = OutputFormat.TABLE
) -> None:
    """Stop a job at once. The next `anabranch run` continues from its last checkpoint.

    With at-least-once delivery, answers since that checkpoint are given twice.
    """
    control = JobControl(FlinkRest(cluster_url(flink_url, data_dir)))
    found = control.find(job)
    control.cancel(found)
    if output is OutputFormat.JSON:
        print_json({"job_id": found.job_id, "name": found.name})
    else:
        Console().print(f"Cancelled {found.name} ({found.job_id}).", soft_wrap=True, highlight=False)


def _table(found: list[JobSummary]) -> Table:
    table = Table("job", "state", "since", "last checkpoint", "failed", "id")
    for job in found:
        checkpoint = "none" if job.checkpoint_time_ms is None else _ago(job.checkpoint_time_ms)
        failed = str(job.failed_checkpoints or "")
        table.add_row(job.name, job.state, _ago(job.start_time_ms), checkpoint, failed, job.job_id)
    return table


def _ago(time_ms: int) -> str:
    seconds = max(0, time.time() - time_ms / 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
