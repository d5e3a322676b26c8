"""`run`: submits the job and waits for it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.commands.prepare import prepare_models
from anabranch.commands.stack import DataDir
from anabranch.flink_job.config import Config, load
from anabranch.flink_job.slots import stage_slots
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import StackError
from anabranch.stack.flink_rest import FlinkRest

if TYPE_CHECKING:
    from anabranch.flink_job.job import RunningJob

_POLL_S = 0.3
_ENDED = {"FAILED", "CANCELED", "FINISHED"}


def run(
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", dir_okay=False, help="The job's TOML configuration.")
    ] = None,
    model_repository: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Folder of the models: NAME/VERSION/model.onnx."),
    ] = None,
    flink_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST address of the Flink cluster. Default: the local stack's.")
    ] = None,
    mini_cluster: Annotated[
        bool, typer.Option("--mini-cluster", help="Run Flink inside this process; needs only a Kafka broker.")
    ] = False,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Kafka broker. Default: as configured, or the local stack's."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the job serves; it goes on in the background.")
    ] = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Serve the models of a repository: submit the job to the local stack or to another cluster.

    Waits until Ctrl-C, which answers the requests that were read and stops
    the job. A second Ctrl-C stops it at once.

      anabranch run --model-repository models --detach
    """
    console = Console(stderr=True)
    if mini_cluster and (flink_url or detach):
        raise typer.BadParameter("--mini-cluster runs in this process: it goes with neither --flink-url nor --detach")

    def configure(slots: int) -> tuple[Config, str | None]:
        config, url = _configure(
            config_path,
            stack.data_dir(data_dir),
            flink_url,
            mini_cluster=mini_cluster,
            servers=bootstrap_servers,
            stage_slots=slots,
        )
        if model_repository:
            config = config.replace(models={"repository": str(model_repository.resolve())})
        return config, url

    config, cluster_url = configure(0)

    from anabranch.flink_job import job  # noqa: PLC0415 - imports PyFlink, which takes a second
    from anabranch.flink_job.kafka import transaction_prefix  # noqa: PLC0415 - as above
    from anabranch.flink_job.kafka_properties import python_client_options  # noqa: PLC0415 - as above
    from anabranch.stack.kafka_transactions import end_transactions  # noqa: PLC0415 - as above
    from anabranch.topics import fit_to_topics, idle_task_count, make_topics  # noqa: PLC0415 - imports Kafka

    catalog = prepare_models(config, console)
    with console.status("Submitting the job"):
        if catalog.in_stages():
            config, cluster_url = configure(stage_slots(catalog))
        if cluster_url:
            _check_slots(cluster_url, config.job.parallelism, stage_slots(catalog))
        make_topics(config)
        config = fit_to_topics(config)
        if idle := idle_task_count(config):
            console.print(
                f"[yellow]{idle} of {config.job.parallelism} tasks read nothing: topic {config.kafka.requests_topic} "
                "has too few partitions. Add partitions, or lower job.parallelism.[/yellow]"
            )
        running = job.start(config, cluster_url, catalog=catalog)
    try:
        with console.status("Loading the models"):
            _await_serving(running, cluster_url)
        if config.job.delivery == "at-least-once":
            end_transactions(
                config.kafka.bootstrap_servers, transaction_prefix(config), python_client_options(config.kafka)
            )
        _print_job(running.job_id, config, cluster_url, output)
        if not detach:
            console.print("Ctrl-C answers the requests that were read, and stops the job; twice stops it at once.")
            running.wait()
    except (KeyboardInterrupt, SystemExit):
        _stop(running, console)
        raise


def _print_job(job_id: str, config: Config, cluster_url: str | None, output: OutputFormat) -> None:
    kafka = config.kafka
    if output is OutputFormat.JSON:
        topics = {name: getattr(kafka, name) for name in ("requests_topic", "responses_topic", "errors_topic")}
        print_json({"job_id": job_id, "flink_url": cluster_url, "bootstrap_servers": kafka.bootstrap_servers, **topics})
        return
    where = f" at {cluster_url}/#/job/running/{job_id}" if cluster_url else " in this process"
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"Job {job_id} serves{where}")
    console.print(f"{kafka.requests_topic} -> {kafka.responses_topic} on {kafka.bootstrap_servers}")


def _stop(running: RunningJob, console: Console) -> None:
    """Drains the job. Cancels it at the next Ctrl-C, or if draining fails."""
    try:
        with console.status("Answering the requests that were read; Ctrl-C stops at once"):
            running.drain(Path(tempfile.mkdtemp(prefix="anabranch-savepoint-")).as_uri())
        console.print("Stopped. All requests that were read are answered.")
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - a job that cannot be drained must still end
        with console.status("Cancelling the job"):
            running.cancel()
        console.print(f"Cancelled. Waiting requests have no answer{_reason(error)}.")


def _reason(error: BaseException) -> str:
    return f" ({str(error).splitlines()[0]})" if str(error) else ""


def _configure(
    path: Path | None,
    folder: Path,
    flink_url: str | None,
    *,
    mini_cluster: bool,
    servers: str | None,
    stage_slots: int,
) -> tuple[Config, str | None]:
    """Return the configuration, completed from the local stack, and the URL of the cluster."""
    kafka: dict[str, Any] = {}
    job: dict[str, Any] = {}
    found = stack.status(folder)
    if not flink_url and not mini_cluster:
        found = stack.require(folder)
        flink_url = found.flink_url
    if found.running:
        kafka = {"bootstrap_servers": found.bootstrap_servers}
        job = {"parallelism": max(1, len(found.task_manager_pids) - stage_slots)}
        if flink_url == found.flink_url:
            job["checkpoint_dir"] = (folder / "checkpoints").resolve().as_uri()
    config = load(path, kafka=kafka, job=job)
    if servers:
        config = config.replace(kafka={"bootstrap_servers": servers})
    return config, flink_url


def _check_slots(flink_url: str, parallelism: int, stage_slots: int) -> None:
    """Refuses a job that has too few slots: Flink would wait for them silently."""
    free, wanted = FlinkRest(flink_url).get("/overview")["slots-available"], parallelism + stage_slots
    if free < wanted:
        stages = f" ({parallelism} that serve, {stage_slots} for stages of models)" if stage_slots else ""
        raise StackError(
            f"the cluster at {flink_url} has {free} free slots, and the job needs {wanted}{stages}: "
            "cancel another job, add TaskManagers (`anabranch up --task-managers N`), or lower job.parallelism"
        )


def _await_serving(running: RunningJob, flink_url: str | None) -> None:
    """Wait until every task has loaded its models."""
    while running.status() not in _ENDED:
        if running.status() == "RUNNING" and (flink_url is None or _tasks_run(flink_url, running.job_id)):
            return
        time.sleep(_POLL_S)
    running.wait()


def _tasks_run(flink_url: str, job_id: str) -> bool:
    vertices = FlinkRest(flink_url).get(f"/jobs/{job_id}")["vertices"]
    return all(vertex["status"] == "RUNNING" for vertex in vertices)
