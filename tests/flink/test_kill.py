"""A TaskManager is killed (`kill -9`) amid 10,000 requests: all answers arrive and are correct.

requests  |-------- 10,000, some of them split ---------|
answers      |----- ... --X                     |------ ... all of them
                          ^ kill -9      ^ another TaskManager; Flink restores the last checkpoint
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas import codec
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import Topics

REQUESTS = 10_000
#: Every 400th request is split into shards.
SPLIT_EVERY = 400


def rows_of(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = 100 if number % SPLIT_EVERY == 0 else 1
    return number + np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_killed_task_manager_loses_and_changes_nothing(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str, delivery: str
) -> None:
    config = Config().replace(
        job={
            "name": f"kill-{mode}-{delivery}",
            "execution_mode": mode,
            "delivery": delivery,
            "parallelism": 2,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (tmp_path / "checkpoints").as_uri(),
        },
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        running = job.start(topics.config, cluster.url)
        topics.ask(_request("warm-up", rows_of(1)), timeout_s=90)
        [victim, _] = cluster.task_managers
        pid = cluster.task_managers[victim].pid

        for start in range(0, REQUESTS, 1000):
            _send(topics, range(start, start + 1000))
            if start == 4000:
                await_checkpoint(cluster, running.job_id)
                answered = topics.read_answers() + len(topics.answers)
                assert answered < REQUESTS
                assert cluster.rest.last_failure(running.job_id) == ""
                assert all(set(states) == {"RUNNING"} for states in cluster.rest.task_states(running.job_id).values())
                cluster.kill_task_manager(victim)
                replacement = cluster.add_task_manager()
                assert cluster.task_managers[replacement].pid != pid

        answers = topics.await_answers((str(number) for number in range(REQUESTS)), timeout_s=200)
        restored = cluster.rest.get(f"/jobs/{running.job_id}/checkpoints")["counts"]["restored"]
        assert restored >= 1, "the job was not restored, so the kill hit nothing"
        assert "Exception" in cluster.rest.last_failure(running.job_id)
        for number in range(REQUESTS):
            answer = answers[str(number)]
            assert isinstance(answer, InferResponse), answer
            assert np.array_equal(answer.outputs[0].to_array(), 2 * rows_of(number) + 2), number

        topics.check_repeated(delivery)
        running.cancel()
    topics.close()


def _request(request_id: str, rows: Any) -> InferRequest:
    return InferRequest("double", (Tensor.from_array("x", rows),), request_id)


def _send(topics: Topics, numbers: range) -> None:
    topics.send(*(codec.encode_request(_request(str(number), rows_of(number))) for number in numbers))


def await_checkpoint(cluster: FlinkCluster, job_id: str) -> None:
    """Waits for a checkpoint that starts after this call."""
    completed = cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["completed"]
    end = time.monotonic() + 180
    while cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["completed"] < completed + 2:
        assert time.monotonic() < end, "no checkpoint is completed"
        time.sleep(0.1)
