"""Metrics at a gateway of a job that serves, and Debian's Prometheus that reads them."""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from ruamel.yaml import YAML

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.monitoring.alerts import GROUP, rules, scraping
from anabranch.monitoring.dashboard import PANELS
from anabranch.served_models import publish
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.gateways import GatewayPorts, GatewayProcess
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from anabranch.stack.ports import free_port
from tests.flink.conftest import FIRST_THREAD
from tests.flink.service import Topics, write_kafka_table
from tests.monitoring.debian import prometheus_folder
from tests.monitoring.test_metrics import samples

X = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}


class Watched:
    """A job and its gateway."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def ask(self) -> None:
        """Sends a request that is answered, and one that fails."""
        for tensor, expected in ((X, 200), ({**X, "shape": [1, 8]}, 400)):
            body = json.dumps({"inputs": [tensor]}).encode()
            try:
                with urlopen(Request(f"{self.url}/v2/models/double/infer", body), timeout=110) as response:
                    status = response.status
            except HTTPError as error:
                status = error.code
            assert status == expected

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        with urlopen(f"{self.url}/metrics", timeout=60) as response:
            return samples(response.read())


@pytest.fixture(scope="module", params=FIRST_THREAD)
def watched(
    request: pytest.FixtureRequest,
    broker: KafkaBroker,
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    name, models_topic = f"watched-{request.param}", f"models-{uuid.uuid4().hex[:8]}"
    config = Config().replace(
        job={
            "name": name,
            "execution_mode": request.param,
            "parallelism": 1,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (folder / "checkpoints").as_uri(),
        },
        kafka={"models_topic": models_topic},
        models={"repository": str(model_repository)},
    )
    broker.create_topics(Topic(models_topic, 1, {"cleanup.policy": "compact"}))
    topics = Topics(broker, config)
    path = write_kafka_table(topics.config, folder / "job.toml")
    with FlinkCluster(folder / "cluster", task_managers=1) as cluster:
        running = job.start(topics.config, cluster.url)
        publish(topics.config, job.read_models(topics.config))
        options = ["--config", str(path), "--flink-url", cluster.url]
        with GatewayProcess(folder, "gateway", GatewayPorts(http=0, grpc=0), options, tied=True) as gateway:
            yield Watched(name, gateway.address.http_url)
        running.cancel()
    topics.close()


@pytest.mark.timeout(240)
def test_metrics_of_a_gateway_are_those_of_its_job(watched: Watched) -> None:
    name = watched.name
    wanted = {
        ("anabranch_gateway_requests_total", ("double", "success", "2")),
        ("anabranch_gateway_requests_total", ("double", "fail", "2")),
        ("anabranch_request_success_total", (name, "double", "2")),
        ("anabranch_request_duration_seconds_count", (name, "double", "2")),
        ("anabranch_request_failure_total", ("wrong_shape", name)),
        ("anabranch_checkpoints_total", (name, "completed")),
    }
    watched.ask()
    give_up_s = time.monotonic() + 110
    # Flink renews its metrics each second.
    while missing := {key for key in wanted if not watched.metrics().get(key)}:
        assert time.monotonic() < give_up_s, missing
        time.sleep(0.5)
    found = watched.metrics()
    assert found[("anabranch_flink_up", ())] == found[("anabranch_jobs_running", ())] == 1
    assert found[("anabranch_job_restarts_total", (name,))] == found[("anabranch_models_left_out", (name,))] == 0
    assert found[("anabranch_waiting_records", (name,))] == 0


@pytest.fixture
def prometheus(watched: Watched, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that asks the gateway each second; its address."""
    config = scraping([watched.url.removeprefix("http://")]) | {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}
    }
    (tmp_path / "alerts.yml").write_text(json.dumps(rules()))
    with (tmp_path / "prometheus.yml").open("w") as file:
        YAML().dump(config, file)
    address = f"127.0.0.1:{free_port()}"
    command = [str(prometheus_folder(tmp_path) / "prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://{address}"
    process.terminate()
    process.wait(30)


def query(address: str, expression: str) -> list[Any]:
    try:
        with urlopen(f"{address}/api/v1/query?query={quote(expression)}", timeout=30) as response:
            found: list[Any] = json.load(response)["data"]["result"]
            return found
    except OSError:
        # It starts.
        return []


@pytest.mark.long
@pytest.mark.timeout(400)
def test_panels_have_data_of_a_job_that_serves(prometheus: str, watched: Watched) -> None:
    missing = {expression for panel in PANELS for expression in panel.queries}
    give_up_s = time.monotonic() + 200
    while missing:
        watched.ask()
        missing = {expression for expression in missing if not query(prometheus, expression)}
        assert time.monotonic() < give_up_s, missing
    assert query(prometheus, f'up{{job="{GROUP}"}}')[0]["value"][1] == "1"
    assert query(prometheus, "anabranch_job_restarts_total")[0]["metric"]["flink_job"] == watched.name
    assert query(prometheus, 'ALERTS{alertstate="firing"}') == []
