"""This project's job as a system."""

import json
from pathlib import Path
from typing import Any

from anabranch.flink_job.config import Config
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.flink_job.job import flink_options, start
from anabranch.topics import make_topics
from bench.harness.messages import ServeCommand
from bench.harness.session_time import BusyBackend
from bench.workloads.events import FRAUD, PATHS, SCHEMA, SCORE


def config_of(command: ServeCommand) -> Config:
    """Return the project's defaults, with what the command says."""
    job: dict[str, Any] = {"parallelism": command.parallelism, "execution_mode": command.mode}
    if command.checkpoint_folder:
        job |= {"delivery": command.delivery, "checkpoint_dir": Path(command.checkpoint_folder).as_uri()}
    if command.checkpoint_interval_ms:
        job["checkpoint_interval_ms"] = command.checkpoint_interval_ms
    topics = {"requests_topic": command.requests_topic, "responses_topic": command.responses_topic}
    if command.events:
        topics = {name: f"{topic}-unused" for name, topic in topics.items()}
    return Config(flow=_flows_of(command)).replace(
        kafka={
            "bootstrap_servers": command.bootstrap_servers,
            **topics,
            "errors_topic": command.errors_topic,
            "group_id": command.group_id,
        },
        job=job,
        models={"repository": command.repository},
        scheduling={"overload": command.overload, "balance": command.balance},
    )


def _flows_of(command: ServeCommand) -> tuple[FlowTable, ...]:
    if not command.events:
        return ()
    avro: dict[str, Any] = (
        {"framing": "none", "schema": str(_schema_beside(command))} if command.events == "avro" else {}
    )
    flow = FlowTable(
        source=command.requests_topic,
        to=command.responses_topic,
        model=FRAUD,
        format=command.events,
        inputs={"x": list(PATHS)},
        outputs={SCORE: "y[1]"},
        **avro,
    )
    return (flow,)


def _schema_beside(command: ServeCommand) -> Path:
    path = Path(f"{command.repository}.avsc")
    path.write_text(json.dumps(SCHEMA))
    return path


def peer_options(config: Config) -> dict[str, str]:
    """Return the job's Flink options for a peer, whose operators have no identities."""
    return flink_options(config) | {"pipeline.auto-generate-uids": "true"}


def run(command: ServeCommand) -> None:
    """Run the job until this process is stopped."""
    backend = BusyBackend(command.busy_folder, command.slowdown) if command.busy_folder else None
    config = config_of(command)
    if command.events:
        make_topics(config)
    start(config, command.flink_url, backend).wait()
