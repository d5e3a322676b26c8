"""Every peer answers a few hundred requests right, by Kafka, and nothing of it is left when it is stopped.

The slow ones: `pytest -m bench tests/bench`.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.harness.environment import BenchEnvironment
from bench.harness.preloaded import Preloaded
from bench.systems.flink.crayfish_wire import as_crayfish
from bench.systems.registry import CONFLUENT, CRAYFISH, JAVA, KAFKA_PYTHON, MLSERVER, RAY_SERVE, System
from bench.workloads.models import make_repository
from bench.workloads.workload import Workload, ffnn_rows

REQUESTS = 300
WARM_UP = 100


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[BenchEnvironment]:
    with BenchEnvironment(tmp_path_factory.mktemp("environment"), repository) as environment:
        yield environment


def check(environment: BenchEnvironment, system: System, workload: Workload) -> None:
    run = Preloaded(workload, REQUESTS, WARM_UP).serve(system, 0, environment)
    assert run.tally.is_clean
    assert run.tally.answered == REQUESTS + WARM_UP
    assert run.rate_per_s > 0
    assert systems_left(environment) == []


def systems_left(environment: BenchEnvironment) -> list[psutil.Process]:
    """Each descendant of a system has a mark in its environment."""
    mark = f"{environment.folder.resolve()}#system"
    return [process for process in psutil.process_iter() if environment_of(process).startswith(mark)]


def environment_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("ANABRANCH_PROCESS", "")
    except psutil.Error:
        return ""


@pytest.mark.peers
@pytest.mark.parametrize("system", [KAFKA_PYTHON, CONFLUENT, JAVA], ids=lambda system: system.kind)
def test_quick_peers_answer_right(environment: BenchEnvironment, repository: Path, system: System) -> None:
    check(environment, system, ffnn_rows(repository))


@pytest.mark.peers
def test_crayfish_peer_answers_right(environment: BenchEnvironment, repository: Path) -> None:
    check(environment, CRAYFISH, as_crayfish(ffnn_rows(repository)))


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("system", [RAY_SERVE, MLSERVER], ids=lambda system: system.kind)
def test_slow_peers_answer_right(environment: BenchEnvironment, repository: Path, system: System) -> None:
    check(environment, system, ffnn_rows(repository))
