"""A savepoint of an earlier commit is restored: its queued requests are answered.

`python -m tests.flink.test_golden_savepoint` wrote `tests/flink/savepoints/MODE` at the commit that introduced it.
Write it anew only when state may change incompatibly, which is a new major version.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from anabranch.flink_job.state.state_directory import starting_point
from anabranch.jobs.control import JobControl
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import Topics, await_checkpoint
from tests.flink.test_restart import check_answers, configured, request, send, start

SAVEPOINTS = Path(__file__).parent / "savepoints"
COUNT = 60
UNANSWERED = "unanswered.json"


def golden_topics(broker: KafkaBroker, folder: Path, mode: str, parallelism: int) -> Topics:
    """Returns the topics whose names are in the savepoint."""
    config = configured(folder, mode, "at-least-once", "golden", parallelism=parallelism)
    return Topics(broker, config, f"golden-{mode}")


@pytest.mark.recovery
@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", MODES)
def test_savepoint_of_an_earlier_commit_is_restored(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    topics = golden_topics(broker, tmp_path, mode, parallelism=2)
    numbers = json.loads((SAVEPOINTS / mode / UNANSWERED).read_text())
    assert len(numbers) > 5
    state = starting_point(topics.config, path=(SAVEPOINTS / mode).as_uri())
    with FlinkCluster(tmp_path / "cluster", task_managers=1, slots=2) as cluster:
        running = start(topics, cluster, state)
        for number in numbers:
            check_answers(topics, range(number, number + 1), timeout_s=60)
        topics.ask(request(COUNT + 1))
        await_checkpoint(cluster, running.job_id)
        running.cancel()
    topics.close()


def write_savepoint(mode: str, folder: Path) -> None:
    """Stops a job amid its requests; keeps its savepoint, and the numbers of the requests in it."""
    with KafkaBroker(folder / "kafka") as broker, FlinkCluster(folder / "cluster", task_managers=1) as cluster:
        topics = golden_topics(broker, folder, mode, parallelism=1)
        running = start(topics, cluster)
        topics.ask(request(COUNT), timeout_s=90)
        send(topics, range(COUNT))
        await_checkpoint(cluster, running.job_id)
        control = JobControl(cluster.rest)
        path = control.stop(control.find())
        while topics.read_answers(timeout_ms=2000):
            pass
        shutil.rmtree(SAVEPOINTS / mode, ignore_errors=True)
        shutil.copytree(path.removeprefix("file:"), SAVEPOINTS / mode)
        unanswered = [number for number in range(COUNT) if str(number) not in topics.answers]
        (SAVEPOINTS / mode / UNANSWERED).write_text(json.dumps(unanswered))
        topics.close()


if __name__ == "__main__":
    for each in sys.argv[1:] or MODES:
        with tempfile.TemporaryDirectory() as scratch:
            write_savepoint(each, Path(scratch))
