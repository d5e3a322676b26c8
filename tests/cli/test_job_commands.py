"""One job through all of its commands on a local stack whose processes are all killed under load."""

import json
import time
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import numpy as np
import pytest
from typer.testing import CliRunner

from anabranch.cli import app
from anabranch.flink_job.config import load
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack import local_stack as stack
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic, create_topics
from anabranch.stack.processes import ProcessRecord, stop_all
from tests.flink.models import write_repository
from tests.flink.service import Topics

#: Requests wait up to three seconds for a batch of 1,000 rows, so that a kill meets them.
CONFIG = """
[job]
name = "lifecycle"
delivery = "exactly-once"
checkpoint_interval_ms = 300
[defaults.batching]
max_rows = 1000
max_delay_ms = 3000
[kafka]
{topics}
"""


class StackBroker:
    """The broker of a local stack, as `Topics` takes it."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def create_topics(self, *topics: Topic) -> None:
        create_topics(self.bootstrap_servers, topics)


class Commands:
    """Runs commands of the CLI on one stack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fails(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--data-dir", str(self.folder)])
        assert result.exit_code == 1, result.output
        return result.output

    def __call__(self, *arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "-o", "json", "--data-dir", str(self.folder)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def send(topics: Topics, first: int, count: int = 40) -> None:
    for number in range(first, first + count):
        x = Tensor.from_array("x", np.full((1, 4), number, np.float32))
        topics.send(codec.encode_request(InferRequest("double", (x,), str(number))))


def processes(folder: Path) -> list[ProcessRecord]:
    text = (folder / "stack.json").read_text()
    names = ("name", "pid", "started_at", "marker")
    return [ProcessRecord(**{name: each[name] for name in names}) for each in json.loads(text)["processes"]]


@pytest.mark.recovery
@pytest.mark.timeout(400)
def test_job_survives_kill_of_everything_rescale_and_upgrade(tmp_path: Path) -> None:
    command, models = Commands(tmp_path / "stack"), tmp_path / "models"
    write_repository(tmp_path / "all")
    models.mkdir()
    (tmp_path / "all" / "double").rename(models / "double")
    (models / "double" / "model.toml").unlink()
    up = ["up", "--task-managers", "2"]
    first = command(*up, *(word for door in ("kafka", "flink", "http", "grpc") for word in (f"--{door}-port", "0")))
    try:
        check(command, tmp_path, first, up)
    finally:
        stack.down(command.folder)


def check(command: Commands, folder: Path, first: dict[str, Any], up: list[str]) -> None:
    topics = Topics(cast("KafkaBroker", StackBroker(first["bootstrap_servers"])), load(None))
    kafka = topics.config.kafka
    names = [f'{name} = "{getattr(kafka, name)}"' for name in ("requests_topic", "responses_topic", "errors_topic")]
    (folder / "job.toml").write_text(CONFIG.format(topics="\n".join([*names, f'group_id = "{kafka.group_id}"'])))
    options = ["--config", str(folder / "job.toml"), "--model-repository", str(folder / "models")]

    started = command("run", *options, "--detach")
    assert started["restored_from"] is None
    assert "runs the job 'lifecycle'" in command.fails("run", *options, "--detach")
    state_url = f"{(command.folder / 'checkpoints').as_uri()}/lifecycle"
    send(topics, 0)
    kept = command("savepoint", "lifecycle")["savepoint"]
    assert kept.startswith(f"{state_url}/savepoints/savepoint-".replace("file:///", "file:/"))

    send(topics, 40)
    await_checkpoint(command)
    [door] = first["gateways"]
    # It was there before the topic of models.
    await_text(door["http_url"] + "/v2/models", "double")
    page = await_text(door["http_url"], "double/")
    for shown in ("Job <strong>lifecycle</strong> is RUNNING", "<strong>serve</strong>"):
        assert shown in page, page
    assert not {str(number) for number in range(80)} <= topics.answers.keys()
    stop_all(processes(command.folder), 0)
    ports = [f"--{name}-port={first[key].rsplit(':', 1)[1]}" for name, key in PORTS]
    command(*up, *ports)
    again = command("run", *options, "--detach")
    assert "/chk-" in again["restored_from"]

    send(topics, 80)
    rescaled = command("rescale", "1", *options)
    assert "/stopped/savepoint-" in rescaled["restored_from"]
    (folder / "all" / "pair").rename(folder / "models" / "pair")
    send(topics, 120)
    assert "/stopped/savepoint-" in command("upgrade", *options)["restored_from"]
    a = Tensor.from_array("a", np.ones((1, 3), np.float32))
    b = Tensor.from_array("b", np.ones((1, 3), np.float32))
    topics.send(codec.encode_request(InferRequest("pair", (a, b), "pair")))

    send(topics, 160)
    path = command("stop", "--drain")["savepoint"]
    assert "/stopped/savepoint-" in path
    answers = topics.await_answers([*map(str, range(200)), "pair"], timeout_s=30)
    for number in range(200):
        answer = answers[str(number)]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), np.full((1, 4), 2 * number + 2, np.float32))
    assert command("run", *options, "--detach")["restored_from"] == path
    topics.check_repeated("exactly-once")
    assert command("cancel")["name"] == "lifecycle"
    states = [job["state"] for job in command("jobs") if job["name"] == "lifecycle"]
    assert states[0] == "CANCELED"
    assert set(states[1:]) == {"FINISHED"}
    assert "no job runs" in command.fails("stop")
    topics.close()


PORTS = (("kafka", "bootstrap_servers"), ("flink", "flink_url"))


def await_text(url: str, text: str) -> str:
    end = time.monotonic() + 60
    while True:
        with urlopen(url, timeout=60) as response:
            found: str = response.read().decode()
        if text in found:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.2)


def await_checkpoint(command: Commands) -> None:
    before = time.time() * 1000
    end = time.monotonic() + 30
    while (command("jobs")[0]["checkpoint_time_ms"] or 0) < before:
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.1)
