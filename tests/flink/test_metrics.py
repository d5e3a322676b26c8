"""A job's counts reach Prometheus, Flink's REST interface and `anabranch top`."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_summary import summarize
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.ports import free_port
from tests.flink.conftest import FIRST_PROCESS
from tests.flink.service import Topics

ANABRANCH = Path(sys.executable).with_name("anabranch")
SMALL, LARGE, BAD = 30, 3, 2


def requests() -> list[InferRequest]:
    rows = [1] * SMALL + [100] * LARGE
    good = [Tensor.from_array("x", np.ones((count, 4), np.float32)) for count in rows]
    bad = [Tensor.from_array("x", np.ones((1, 5), np.float32))] * BAD
    return [InferRequest("double", (tensor,), f"{time.time_ns()}-{n}") for n, tensor in enumerate([*good, *bad])]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_counts_reach_prometheus_rest_and_top(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str
) -> None:
    port = free_port()
    config = Config().replace(
        job={"name": f"watched-{mode}", "execution_mode": mode, "parallelism": 1},
        models={"repository": str(model_repository)},
    )
    settings = {
        "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
        "metrics.reporter.prom.port": f"{port}-{port + 20}",
    }
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=1, settings=settings) as cluster:
        running = job.start(topics.config, cluster.url)
        topics.ask(*requests(), timeout_s=90)
        counted = await_counts(range(port, port + 21))
        model = {"model": "double_2"}  # Prometheus wants no "-" in a label; 2 is the newest version.
        assert value_of(counted, "model_requests", model) == SMALL + LARGE
        assert value_of(counted, "model_rows", model) == SMALL + 100 * LARGE
        assert value_of(counted, "error_requests", {"error": "wrong_shape"}) == BAD
        for stage in PHASES:
            buckets = {
                label["le"]: value
                for name, label, value in counted
                if name.endswith(f"anabranch_model_{stage}_le_requests")
            }
            assert stage == "merge" or buckets["inf"] >= LARGE, (stage, buckets)
        check_top(cluster, topics)
        check_models(cluster, model_repository)
        running.cancel()
    topics.close()


def check_top(cluster: FlinkCluster, topics: Topics) -> None:
    stop = Event()

    def keep_asking() -> None:
        while not stop.is_set():
            topics.ask(*requests())

    asking = Thread(target=keep_asking)
    asking.start()
    try:
        said = subprocess.run(
            [ANABRANCH, "top", "--flink-url", cluster.url, "--once", "--json", "--interval-s", "5"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        stop.set()
        asking.join()
    seen = json.loads(said.stdout)
    [model] = seen["models"]
    assert model["model"] == "double-2"
    # On a busy machine the interval may have seen single rows alone; the exact counts are checked above.
    assert 0 < model["requests_per_s"] <= model["rows_per_s"]
    assert 0 < model["p50_ms"] <= model["p99_ms"]
    assert model["stage_ms"]["session"] > 0
    assert seen["errors_per_s"]["wrong_shape"] > 0


def check_models(cluster: FlinkCluster, repository: Path) -> None:
    arguments = ["models", "--flink-url", cluster.url, "--model-repository", str(repository), "-o", "json"]
    said = subprocess.run([ANABRANCH, *arguments], capture_output=True, text=True, timeout=60, check=True)
    listed = json.loads(said.stdout)
    held = summarize(read_repository(repository, Config().defaults))
    assert [(each["name"], each["version"]) for each in listed["models"]] == [(m.name, m.version) for m in held]
    assert {each["state"] for each in listed["models"]} == {"served"}
    assert listed["job"]["name"].startswith("watched-")


Sample = tuple[str, dict[str, str], float]


def await_counts(ports: range) -> list[Sample]:
    """Returns all counters of Anabranch, once they include the last request."""
    end, is_complete = time.monotonic() + 60, False
    while True:
        samples = [sample for port in ports for sample in scrape(port)]
        there = [sample for sample in samples if re.search("anabranch_(model|error)_requests$", sample[0])]
        if is_complete:
            return samples
        # Counters are updated one after the other: the next look sees all of them.
        is_complete = sum(value for _, _, value in there) >= SMALL + LARGE + BAD
        assert time.monotonic() < end, [(has["operator_name"], count) for _, has, count in there]
        time.sleep(0.5)


def scrape(port: int) -> list[Sample]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
    except OSError:
        return []
    found = [re.fullmatch(r"(\w+_anabranch_\w+)\{(.*)\} (\S+)", line) for line in lines]
    return [
        (line.group(1), dict(re.findall(r'(\w+)="([^"]*)"', line.group(2))), float(line.group(3)))
        for line in found
        if line
    ]


def value_of(samples: list[Sample], name: str, labels: dict[str, str]) -> float:
    return sum(
        value for found, has, value in samples if found.endswith(f"anabranch_{name}") and labels.items() <= has.items()
    )
