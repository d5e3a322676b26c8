"""`run`: submits the job and waits for it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.commands.repository.prepare import prepare_models
from anabranch.commands.stack import DataDir
from anabranch.flink_job.config import Config, load
from anabranch.flink_job.job_identity import identity_of
from anabranch.flink_job.slots import stage_slots
from anabranch.flink_job.state.saved_state import STOPPED, check_state_is_kept
from anabranch.jobs.conflicts import conflict_error, find_conflict, refuse_elsewhere
from anabranch.jobs.control import JobControl
from anabranch.jobs.interrupts import Interrupts
from anabranch.jobs.keeper import JobKeeper
from anabranch.jobs.left_out import left_out_line
from anabranch.schemas.errors import ModelUnavailable
from anabranch.schemas.model import Catalog
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

if TYPE_CHECKING:
    from anabranch.flink_job.job import RunningJob


ConfigPath = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", dir_okay=False, help="The job's TOML configuration.")
]
ModelRepository = Annotated[
    Path | None,
    typer.Option(metavar="DIR", file_okay=False, help="Folder of the models: NAME/VERSION/model.onnx."),
]
Servers = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Kafka broker. Default: as configured, or the local stack's."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse to start if a model cannot be served, instead of leaving it out.")
]
#: Failures of a job that never served, after which `run` ends.
MOST_FAILURES = 3


def run(
    config_path: ConfigPath = None,
    model_repository: ModelRepository = None,
    flink_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST address of the Flink cluster. Default: the local stack's.")
    ] = None,
    mini_cluster: Annotated[
        bool, typer.Option("--mini-cluster", help="Run Flink inside this process; needs only a Kafka broker.")
    ] = False,
    bootstrap_servers: Servers = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the job serves; it goes on in the background.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start without state, and never use the older states again.")
    ] = False,
    from_path: Annotated[
        str | None,
        typer.Option("--from", metavar="PATH", help="Checkpoint or savepoint to start from. Default: the newest."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Stop a job of the same name, group or topics with a savepoint; start from it."),
    ] = False,
    strict: Strict = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Serve the models of a repository: submit the job to the local stack or to another cluster.

    Starts from the newest checkpoint or savepoint of the job's name.
    Waits until Ctrl-C, which answers the requests that were read and stops
    the job. A second Ctrl-C stops it at once.

      anabranch run --model-repository models --detach
    """
    console = Console(stderr=True)
    if fresh and from_path:
        raise typer.BadParameter("--fresh starts without state, and --from with one: choose one of them")
    if mini_cluster and (flink_url or detach or replace):
        raise typer.BadParameter("--mini-cluster runs in this process: without --flink-url, --detach and --replace")

    def configure(slots: int) -> tuple[Config, str | None]:
        return configuration(
            config_path,
            model_repository,
            data_dir,
            flink_url,
            mini_cluster=mini_cluster,
            servers=bootstrap_servers,
            stage_slots=slots,
        )

    config, cluster_url = configure(0)
    check_state_is_kept(config, in_this_process=cluster_url is None)
    conflict = find_conflict(FlinkRest(cluster_url), identity_of(config)) if cluster_url else None
    if conflict and not replace:
        raise conflict_error(cluster_url or "", *conflict)
    if cluster_url and not conflict:
        with console.status("Looking whether the job runs elsewhere"):
            _refuse_elsewhere(config, FlinkRest(cluster_url))
    catalog = prepare_models(config, console, strict=strict)
    tell_left_out(catalog, teller(console))
    with console.status("Looking at cluster and topics"):
        if catalog.in_stages():
            config, cluster_url = configure(stage_slots(catalog))
        if cluster_url:
            check_slots(cluster_url, config.job.parallelism, stage_slots(catalog), replaces=conflict is not None)
        config = with_topics(config, console, catalog)
    with Interrupts() as interrupts:
        keeper = JobKeeper(config, cluster_url, catalog, teller(console), interrupts.sleep)
        with console.status("Submitting the job"):
            path = from_path or ""
            if conflict:
                keeper.store()
                path = _stop_other(JobControl(FlinkRest(cluster_url or "")), conflict[0], config, path, keeper)
            keeper.start(fresh=fresh, path="" if fresh else path)
        try:
            with console.status("Loading the models"):
                keeper.await_serving(failures=MOST_FAILURES)
            refuse_left_out(keeper, interrupts, strict=strict)
            print_job(keeper, config, cluster_url, output)
            if not detach:
                console.print("Ctrl-C answers the requests that were read, and stops the job; twice stops it at once.")
                keeper.wait()
        except (KeyboardInterrupt, SystemExit):
            _stop(keeper.running, config.job.state_url, console, interrupts)
            raise


def _refuse_elsewhere(config: Config, rest: FlinkRest) -> None:
    from anabranch.flink_job.state.state_directory import StateDirectory  # noqa: PLC0415 - imports PyFlink

    if config.job.state_url:
        here = [job.job_id for job in rest.jobs()]
        states = StateDirectory(config).states
        refuse_elsewhere(states, here, config.job.checkpoint_interval_ms, time.time() * 1000, time.sleep)


def _stop_other(control: JobControl, other: FlinkJob, config: Config, path: str, keeper: JobKeeper) -> str:
    """Stop a job; return the state to start from: a chosen one, or its savepoint."""
    savepoint = control.stop(other)
    keeper.tell(f"Stopped {other.name} with the savepoint {savepoint}")
    keeper.await_slots()
    # Flink writes `file:/` for `file:///`; the newest state of the own folder is found anyway.
    own = config.job.state_url.replace("file:///", "file:/")
    return path or ("" if savepoint.replace("file:///", "file:/").startswith(f"{own}/") else savepoint)


def tell_left_out(catalog: Catalog, tell: Callable[[str], None]) -> None:
    """Name the models that cannot be served, and the folders that are not versions."""
    for each in catalog.left_out:
        tell(left_out_line(each))
    if catalog.ignored:
        tell(f"Ignored folders: {', '.join(catalog.ignored)}.")


def refuse_left_out(keeper: JobKeeper, interrupts: Interrupts, *, strict: bool) -> None:
    """Cancel a strict job whose tasks could not load a model; raise ModelUnavailable."""
    if strict and keeper.left_out:
        keeper.running.cancel(interrupts.sleep)
        raise ModelUnavailable(f"{keeper.left_out[0].message}: mend it, or run without --strict")


def with_topics(config: Config, console: Console, catalog: Catalog) -> Config:
    """Make missing topics, and publish the models; return the configuration with the limits of the topics.

    Says if tasks will be idle.
    """
    from anabranch.topics import fit_to_topics, idle_task_count, make_topics  # noqa: PLC0415 - imports Kafka

    make_topics(config, catalog)
    config = fit_to_topics(config)
    if idle := idle_task_count(config):
        console.print(
            f"[yellow]{idle} of {config.job.parallelism} tasks read nothing: topic {config.kafka.requests_topic} "
            "has too few partitions. Add partitions, or lower job.parallelism.[/yellow]"
        )
    return config


def teller(console: Console) -> Callable[[str], None]:
    """Return a function that prints one line, with paths as they are."""
    return lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_job(keeper: JobKeeper, config: Config, cluster_url: str | None, output: OutputFormat) -> None:
    """Print the identity of a job that serves, and its topics."""
    kafka, job_id = config.kafka, keeper.running.job_id
    if output is OutputFormat.JSON:
        topics = {name: getattr(kafka, name) for name in ("requests_topic", "responses_topic", "errors_topic")}
        started = {"job_id": job_id, "name": config.job.name, "restored_from": keeper.started_from}
        left_out = {"left_out": [*keeper.catalog.left_out, *keeper.left_out], "ignored": keeper.catalog.ignored}
        where = {"flink_url": cluster_url, "bootstrap_servers": kafka.bootstrap_servers}
        print_json({**started, **where, **topics, **left_out})
        return
    place = f" at {cluster_url}/#/job/running/{job_id}" if cluster_url else " in this process"
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"Job {job_id} serves{place}")
    console.print(f"{kafka.requests_topic} -> {kafka.responses_topic} on {kafka.bootstrap_servers}")
    for flow in config.flow:
        console.print(f"{flow.source} -> {flow.model} -> {flow.to}", markup=False)


def _stop(running: RunningJob, state_url: str, console: Console, interrupts: Interrupts) -> None:
    """Drain the job; cancel it at the next Ctrl-C, or if draining fails."""
    try:
        with console.status("Answering the requests that were read; Ctrl-C stops at once"):
            if state_url:
                path = running.drain(f"{state_url}/{STOPPED}", interrupts.sleep)
            else:
                with tempfile.TemporaryDirectory(prefix="anabranch-savepoint-") as folder:
                    running.drain(Path(folder).as_uri(), interrupts.sleep)
                    path = ""
        kept = f" `anabranch run` continues from {path}" if path else ""
        console.print(f"Stopped. All requests that were read are answered.{kept}", soft_wrap=True)
    except (KeyboardInterrupt, SystemExit, Exception) as error:  # noqa: BLE001 - the job must still end
        with console.status("Cancelling the job"):
            running.cancel(interrupts.sleep)
        later = "are answered by the next run" if state_url else "have no answer"
        console.print(f"Cancelled. Waiting requests {later}{_reason(error)}.")


def _reason(error: BaseException) -> str:
    return f" ({str(error).splitlines()[0]})" if isinstance(error, Exception) and str(error) else ""


def configuration(
    config_path: Path | None,
    model_repository: Path | None,
    data_dir: Path | None,
    flink_url: str | None,
    *,
    mini_cluster: bool,
    servers: str | None,
    stage_slots: int,
) -> tuple[Config, str | None]:
    """Return the configuration, completed from options and local stack, and the URL of the cluster.

    Args:
        stage_slots: Slots that stages of models take of the local stack.
    """
    folder = stack.data_dir(data_dir)
    config, url = _configure(
        config_path, folder, flink_url, mini_cluster=mini_cluster, servers=servers, stage_slots=stage_slots
    )
    if model_repository:
        config = config.replace(models={"repository": str(model_repository.resolve())})
    return config, url


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


def check_slots(flink_url: str, parallelism: int, stage_slots: int, *, replaces: bool) -> None:
    """Refuse a job that has too few slots: Flink would wait for them silently.

    Args:
        replaces: The job gets the slots of another one, too.
    """
    key, kind, way = (
        ("slots-total", "slots", "") if replaces else ("slots-available", "free slots", "cancel another job, ")
    )
    found, wanted = FlinkRest(flink_url).get("/overview")[key], parallelism + stage_slots
    if found < wanted:
        stages = f" ({parallelism} that serve, {stage_slots} for stages of models)" if stage_slots else ""
        raise StackError(
            f"the cluster at {flink_url} has {found} {kind}, and the job needs {wanted}{stages}: "
            f"{way}add TaskManagers (`anabranch up --task-managers N`), or lower job.parallelism"
        )
