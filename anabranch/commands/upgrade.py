"""`upgrade` and `rescale`: replace a running job by one that continues from its savepoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anabranch.commands.jobs import FlinkUrl
from anabranch.commands.output import Output, OutputFormat
from anabranch.commands.repository.prepare import prepare_models
from anabranch.commands.run import (
    MOST_FAILURES,
    ConfigPath,
    ModelRepository,
    Servers,
    Strict,
    check_slots,
    configuration,
    print_job,
    refuse_left_out,
    tell_left_out,
    teller,
    with_topics,
)
from anabranch.commands.stack import DataDir
from anabranch.flink_job.config import Config
from anabranch.flink_job.slots import stage_slots
from anabranch.flink_job.state.saved_state import check_state_is_kept
from anabranch.jobs.control import JobControl
from anabranch.jobs.interrupts import Interrupts
from anabranch.jobs.keeper import JobKeeper
from anabranch.stack.flink.rest import FlinkRest


def upgrade(
    config_path: ConfigPath = None,
    model_repository: ModelRepository = None,
    flink_url: FlinkUrl = None,
    bootstrap_servers: Servers = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Replace the running job by one with the present configuration, models and version of Anabranch.

    Reads the new models first, then stops the job of this name with a
    savepoint and starts the new one from it. Give the options of
    `anabranch run`:

      anabranch upgrade --model-repository models
    """
    _replace(
        config_path, model_repository, flink_url, bootstrap_servers, data_dir, output, parallelism=None, strict=strict
    )


def rescale(
    tasks: Annotated[int, typer.Argument(min=1, help="Number of inference tasks.")],
    config_path: ConfigPath = None,
    model_repository: ModelRepository = None,
    flink_url: FlinkUrl = None,
    bootstrap_servers: Servers = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give the running job another number of inference tasks.

    Works as `anabranch upgrade` does, and takes the same options. With a flow
    that keeps order, both answer all events first:

      anabranch rescale 4 --model-repository models

    A later `run` or `upgrade` uses job.parallelism of the configuration.
    """
    _replace(
        config_path, model_repository, flink_url, bootstrap_servers, data_dir, output, parallelism=tasks, strict=strict
    )


def _replace(
    config_path: Path | None,
    model_repository: Path | None,
    flink_url: str | None,
    servers: str | None,
    data_dir: Path | None,
    output: OutputFormat,
    *,
    parallelism: int | None,
    strict: bool,
) -> None:
    console = Console(stderr=True)

    def configure(slots: int) -> tuple[Config, str | None]:
        config, url = configuration(
            config_path, model_repository, data_dir, flink_url, mini_cluster=False, servers=servers, stage_slots=slots
        )
        return (config.replace(job={"parallelism": parallelism}) if parallelism else config), url

    config, url = configure(0)
    check_state_is_kept(config, in_this_process=False)
    rest = FlinkRest(url or "")
    control = JobControl(rest)
    old = control.find(config.job.name)
    catalog = prepare_models(config, console, strict=strict)
    tell_left_out(catalog, teller(console))
    if catalog.in_stages():
        config, _ = configure(stage_slots(catalog))
    check_slots(rest.url, config.job.parallelism, stage_slots(catalog), replaces=True)
    config = with_topics(config, console, catalog)
    interrupts = Interrupts()
    keeper = JobKeeper(config, url, catalog, teller(console), interrupts.sleep)
    with console.status("Copying new models to the store"):
        keeper.store()
    # Events that wait in state may go to other tasks than later ones of their keys.
    is_ordered = any(flow.order == "key" for flow in config.flow)
    with console.status("Stopping the job with a savepoint"):
        path = control.stop(old, drain=is_ordered)
    teller(console)(f"Stopped {old.name} with the savepoint {path}")
    try:
        with interrupts, console.status("Starting the job again"):
            keeper.await_slots()
            keeper.start()
            keeper.await_serving(failures=MOST_FAILURES)
            refuse_left_out(keeper, interrupts, strict=strict)
    except BaseException:
        teller(console)(f"The new job did not start: `anabranch run` with the old configuration continues from {path}")
        raise
    print_job(keeper, config, url, output)
