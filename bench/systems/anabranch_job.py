"""This project's job as a system."""

from pathlib import Path
from typing import Any

from anabranch.flink_job.config import Config
from anabranch.flink_job.job import flink_options, start
from bench.harness.messages import ServeCommand
from bench.harness.session_time import BusyBackend


def config_of(command: ServeCommand) -> Config:
    """Return the project's defaults, with what the command says."""
    job: dict[str, Any] = {"parallelism": command.parallelism, "execution_mode": command.mode}
    if command.checkpoint_folder:
        job |= {"delivery": command.delivery, "checkpoint_dir": Path(command.checkpoint_folder).as_uri()}
    if command.checkpoint_interval_ms:
        job["checkpoint_interval_ms"] = command.checkpoint_interval_ms
    return Config().replace(
        kafka={
            "bootstrap_servers": command.bootstrap_servers,
            "requests_topic": command.requests_topic,
            "responses_topic": command.responses_topic,
            "errors_topic": command.errors_topic,
            "group_id": command.group_id,
        },
        job=job,
        models={"repository": command.repository},
        scheduling={"overload": command.overload, "balance": command.balance},
    )


def peer_options(config: Config) -> dict[str, str]:
    """Return the job's Flink options for a peer, whose operators have no identities."""
    return flink_options(config) | {"pipeline.auto-generate-uids": "true"}


def run(command: ServeCommand) -> None:
    """Run the job until this process is stopped."""
    backend = BusyBackend(command.busy_folder, command.slowdown) if command.busy_folder else None
    start(config_of(command), command.flink_url, backend).wait()
