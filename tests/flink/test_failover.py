"""Failovers under load, one after the other: no request is lost, and no TaskManager ends that was not killed."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from anabranch.flink_job import job
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.service import Topics, await_checkpoint, durable

FIRST, REQUESTS = 40, 400


def rows_of(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return number + np.arange(4, dtype=np.float32).reshape(1, 4)


def send(topics: Topics, numbers: range) -> None:
    requests = (InferRequest("double", (Tensor.from_array("x", rows_of(number)),), str(number)) for number in numbers)
    topics.send(*map(codec.encode_request, requests))


def worker_of(process_id: int) -> psutil.Process:
    """Returns the process that runs the Python operators of a TaskManager; one of an earlier attempt may be ending."""
    below = psutil.Process(process_id).children(recursive=True)
    workers = [each for each in below if not each.children() and "pyflink" in " ".join(each.cmdline())]
    return max(workers, key=lambda each: each.create_time())


def await_restore(cluster: FlinkCluster, job_id: str, restores: int) -> None:
    end = time.monotonic() + 60
    while cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["restored"] < restores:
        assert time.monotonic() < end, "the job was not restored"
        time.sleep(0.1)


@pytest.mark.recovery
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("mode", "failovers"),
    [("process", 2), *(pytest.param(*run, marks=pytest.mark.long) for run in [("thread", 2), ("process", 8)])],
)
def test_failovers_under_load_spare_healthy_processes(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str, failovers: int
) -> None:
    """In process mode Python dies without its TaskManager, so a failover is quick, and the other one only cancels."""
    config = durable("failover", mode, tmp_path, model_repository)
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        running = job.start(topics.config, cluster.url)
        send(topics, range(FIRST))
        topics.await_answers(map(str, range(FIRST)), timeout_s=120)
        # Without one, Flink restores nothing.
        await_checkpoint(cluster, running.job_id)
        sent = FIRST
        for failover in range(failovers):
            following = range(sent, sent + REQUESTS)
            send(topics, following)
            answered = len(topics.answers)
            while len(topics.answers) < answered + REQUESTS // 20:
                topics.read_answers()
            number, process = list(cluster.task_managers.items())[failover % 2]
            if mode == "process":
                worker_of(process.pid).kill()
            else:
                cluster.kill_task_manager(number)
                cluster.add_task_manager()
            answers = topics.await_answers(map(str, following), timeout_s=100)
            for each in following:
                answer = answers[str(each)]
                assert isinstance(answer, InferResponse), answer
                assert np.array_equal(answer.outputs[0].to_array(), 2 * rows_of(each) + 2), each
            sent += REQUESTS
            await_restore(cluster, running.job_id, failover + 1)
            ended = [name for name, each in cluster.task_managers.items() if not each.is_alive()]
            assert not ended, f"TaskManagers {ended} ended in failover {failover}"
        running.cancel()
    topics.close()


@pytest.mark.recovery
@pytest.mark.timeout(300)
def test_idle_worker_that_ends_restarts_its_job_at_once(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path
) -> None:
    """Beam notices it at the next bundle, and waits three minutes at that one if it would have been the first."""
    config = durable("idle", "process", tmp_path, model_repository)
    topics = Topics(broker, config.replace(job={"parallelism": 1}))
    with FlinkCluster(tmp_path / "cluster", task_managers=1) as cluster:
        running = job.start(topics.config, cluster.url)
        await_checkpoint(cluster, running.job_id)
        (task_manager,) = cluster.task_managers.values()
        for kill in range(2):
            worker_of(task_manager.pid).kill()
            await_restore(cluster, running.job_id, kill + 1)
            assert "ended before its task" in str(cluster.rest.get(f"/jobs/{running.job_id}/exceptions"))
            first = kill * FIRST
            send(topics, range(first, first + FIRST))
            topics.await_answers(map(str, range(first, first + FIRST)), timeout_s=60)
            await_checkpoint(cluster, running.job_id)
        running.cancel()
    topics.close()
