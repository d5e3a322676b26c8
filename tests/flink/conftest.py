"""One job for each execution mode, shared by tests that leave it intact."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.models import write_repository
from tests.flink.service import Topics

MODES = ("thread", "process")
#: Both modes, one of them in the gate.
FIRST_THREAD = ("thread", pytest.param("process", marks=pytest.mark.long))
FIRST_PROCESS = ("process", pytest.param("thread", marks=pytest.mark.long))
#: Modes and deliveries, one pair in the gate.
RUNS = (
    ("process", "exactly-once"),
    *(
        pytest.param(mode, delivery, marks=pytest.mark.long)
        for mode, delivery in (("process", "at-least-once"), ("thread", "exactly-once"), ("thread", "at-least-once"))
    ),
)


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `tests.flink.models`."""
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    return folder


@pytest.fixture(scope="module", params=MODES)
def service(request: pytest.FixtureRequest, broker: KafkaBroker, model_repository: Path) -> Iterator[Topics]:
    """A job of two tasks on a MiniCluster, in each execution mode."""
    config = Config().replace(
        job={"execution_mode": request.param, "parallelism": 2, "checkpoint_interval_ms": 2000},
        kafka={"max_message_bytes": 4 * 1024 * 1024},
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    yield topics
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()
