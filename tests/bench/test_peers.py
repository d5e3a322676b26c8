"""Every peer answers a few hundred requests right, by Kafka, and nothing of it is left when it is stopped.

The slow ones: `pytest -m bench tests/bench`.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.arena import Arena
from bench.models import make_repository
from bench.peers.crayfish import as_crayfish
from bench.scenarios.preloaded import Preloaded
from bench.subjects import CONFLUENT, CRAYFISH, JAVA, KAFKA_PYTHON, MLSERVER, RAY_SERVE, Subject
from bench.workloads import Workload, ffnn_rows

REQUESTS = 300
WARM_UP = 100


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Arena]:
    with Arena(tmp_path_factory.mktemp("arena"), repository) as arena:
        yield arena


def check(arena: Arena, subject: Subject, workload: Workload) -> None:
    run = Preloaded(workload, REQUESTS, WARM_UP).serve(subject, 0, arena)
    assert run.tally.is_clean
    assert run.tally.answered == REQUESTS + WARM_UP
    assert run.rate_per_s > 0
    assert subjects_left(arena) == []


def subjects_left(arena: Arena) -> list[psutil.Process]:
    """Whatever descends from a subject says so in its environment."""
    mark = f"{arena.folder.resolve()}#subject"
    return [process for process in psutil.process_iter() if environment_of(process).startswith(mark)]


def environment_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("ANABRANCH_PROCESS", "")
    except psutil.Error:
        return ""


@pytest.mark.parametrize("subject", [KAFKA_PYTHON, CONFLUENT, JAVA], ids=lambda subject: subject.kind)
def test_quick_ones(arena: Arena, repository: Path, subject: Subject) -> None:
    check(arena, subject, ffnn_rows(repository))


def test_crayfish(arena: Arena, repository: Path) -> None:
    check(arena, CRAYFISH, as_crayfish(ffnn_rows(repository)))


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("subject", [RAY_SERVE, MLSERVER], ids=lambda subject: subject.kind)
def test_slow_ones(arena: Arena, repository: Path, subject: Subject) -> None:
    check(arena, subject, ffnn_rows(repository))
