"""Large records travel through shared memory of TaskManagers; kills lose no request and leak no memory."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.arenas import arenas, processes_of
from tests.flink.conftest import FIRST_PROCESS, MODES
from tests.flink.service import Topics

Rows = np.ndarray[Any, np.dtype[np.float32]]


def config(model_repository: Path, checkpoints: Path, mode: str, delivery: str) -> Config:
    """Makes small shards and their outputs travel as claims."""
    return Config().replace(
        job={
            "name": f"exchange-{mode}-{delivery}",
            "execution_mode": mode,
            "delivery": delivery,
            "parallelism": 2,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": checkpoints.as_uri(),
        },
        exchange={"claim_from_bytes": 256},
        models={"repository": str(model_repository)},
    )


def rows_of(number: int) -> Rows:
    """Returns 2 MB in shards of 1 MB for every third request, 13 shards of 256 bytes for the others.

    Whole numbers: their sums are exact in any order.
    """
    if number % 3 == 0:
        return number + np.arange(64, dtype=np.float32)[:, None] + np.arange(8192, dtype=np.float32) % 7
    return number + np.arange(800, dtype=np.float32).reshape(200, 4)


def request_of(number: int) -> InferRequest:
    return InferRequest(
        "wide" if number % 3 == 0 else "double", (Tensor.from_array("x", rows_of(number)),), str(number)
    )


def check(answers: Iterable[tuple[int, object]]) -> None:
    for number, answer in answers:
        assert isinstance(answer, InferResponse), answer
        x = rows_of(number)
        expected = x.mean(axis=1, keepdims=True) if number % 3 == 0 else 2 * x + 2
        assert np.array_equal(answer.outputs[0].to_array(), expected), number


def counts(cluster: FlinkCluster, job_id: str) -> dict[str, float]:
    """Returns the exchange counters, summed over all operators."""
    sums = cluster.rest.sums(job_id, lambda names: [name for name in names if ".anabranch.exchange." in name])
    found: dict[str, float] = {}
    for name, value in sums.items():
        last = name.rsplit(".", 1)[1]
        found[last] = found.get(last, 0) + value
    return found


def await_claims(cluster: FlinkCluster, job_id: str) -> dict[str, float]:
    end = time.monotonic() + 60
    while not (counted := counts(cluster, job_id)).get("claims"):
        assert time.monotonic() < end, f"nothing went by shared memory: {counted}"
        time.sleep(0.5)
    return counted


def await_gone(names: Iterable[str], timeout_s: float = 60) -> None:
    wanted, end = set(names), time.monotonic() + timeout_s
    while left := {name: held for name, held in arenas().items() if name in wanted}:
        assert time.monotonic() < end, left
        time.sleep(0.2)


@pytest.mark.recovery
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_shared_memory_survives_a_kill_and_leaves_nothing(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "cluster"
    topics = Topics(broker, config(model_repository, tmp_path / "checkpoints", mode, "at-least-once"))
    with FlinkCluster(folder, task_managers=2) as cluster:
        running = job.start(topics.config, cluster.url)
        check(enumerate(topics.ask(*map(request_of, range(30)), timeout_s=120)))
        counted = await_claims(cluster, running.job_id)
        assert counted["claimed_bytes"] > 256 * counted["claims"]
        assert "lost" not in counted
        first = arenas(processes_of(folder)).keys()
        assert first

        topics.send(*(codec.encode_request(request_of(number)) for number in range(30, 60)))
        kill_one(cluster)
        answers = topics.await_answers(map(str, range(30, 60)), timeout_s=200)
        check((number, answers[str(number)]) for number in range(30, 60))
        check(zip(range(60, 90), topics.ask(*map(request_of, range(60, 90)), timeout_s=120), strict=True))
        assert await_claims(cluster, running.job_id).get("lost", 0) == 0
        await_gone(first)
        second = arenas(processes_of(folder)).keys()
        assert second
        running.cancel()
    topics.close()
    await_gone(second)


def kill_one(cluster: FlinkCluster) -> None:
    cluster.kill_task_manager(next(iter(cluster.task_managers)))
    cluster.add_task_manager()


@pytest.mark.parametrize("mode", MODES)
def test_bounded_input_claims_are_read_before_the_end(broker: KafkaBroker, model_repository: Path, mode: str) -> None:
    """A finished writer's arena must outlive its readers."""
    settings = Config().replace(
        job={"execution_mode": mode, "parallelism": 2, "bounded": True, "checkpoint_interval_ms": 500},
        exchange={"claim_from_bytes": 256},
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, settings)
    topics.send(*(codec.encode_request(request_of(number)) for number in range(60)))
    job.start(topics.config).wait()
    answers = topics.await_answers(map(str, range(60)), timeout_s=10)
    check((number, answers[str(number)]) for number in range(60))
    topics.close()
