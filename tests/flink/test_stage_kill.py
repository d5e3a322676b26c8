"""The process of one stage is killed (`kill -9`) under load: all answers arrive and are correct.

requests  |------ some of them split -----------|
answers      |----- ... --X                     |------ ... all of them
                          ^ kill -9 of stage 2's TaskManager; another takes its place, from the last checkpoint
"""

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
from anabranch.stack.flink.task_placement import workers
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import RUNS
from tests.flink.models import TABLE, write_cut_model
from tests.flink.service import Topics, await_checkpoint

SPLIT_EVERY = 40
COUNT = 400


def inputs_of(number: int) -> tuple[Any, Any]:
    rows = 100 if number % SPLIT_EVERY == 0 else 1 + number % 3
    return number + np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), (number + np.arange(rows)) % 8


def request(number: int) -> InferRequest:
    x, i = inputs_of(number)
    return InferRequest("steps", (Tensor.from_array("x", x), Tensor.from_array("i", i)), str(number))


def holder_of(stage: str, cluster: FlinkCluster) -> int:
    [name] = {
        worker.name
        for worker in workers(cluster.rest, cluster.rest.jobs())
        for task in worker.tasks
        if task.operator.endswith(stage)
    }
    return int(name.rsplit("-", 1)[1])


@pytest.mark.recovery
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("mode", "delivery"), RUNS)
def test_killed_stage_loses_and_changes_nothing(broker: KafkaBroker, tmp_path: Path, mode: str, delivery: str) -> None:
    write_cut_model(tmp_path / "models", "replicas = [1, 1, 1]\n[batching]\nshard_rows = 16\n")
    config = Config().replace(
        job={
            "name": f"kill-stage-{mode}-{delivery}",
            "execution_mode": mode,
            "delivery": delivery,
            "parallelism": 1,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (tmp_path / "checkpoints").as_uri(),
        },
        models={"repository": str(tmp_path / "models")},
    )
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=4) as cluster:
        running = job.start(topics.config, cluster.url)
        topics.ask(request(COUNT), timeout_s=120)
        victim = holder_of("stage 2/3", cluster)

        topics.send(*(codec.encode_request(request(number)) for number in range(COUNT // 4)))
        await_checkpoint(cluster, running.job_id)
        topics.send(*(codec.encode_request(request(number)) for number in range(COUNT // 4, COUNT // 2)))
        assert cluster.rest.last_failure(running.job_id) == ""
        cluster.kill_task_manager(victim)
        cluster.add_task_manager()
        topics.send(*(codec.encode_request(request(number)) for number in range(COUNT // 2, COUNT)))

        answers = topics.await_answers((str(number) for number in range(COUNT)), timeout_s=200)
        assert cluster.rest.get(f"/jobs/{running.job_id}/checkpoints")["counts"]["restored"] >= 1
        assert holder_of("stage 2/3", cluster) in cluster.task_managers
        for number in range(COUNT):
            answer, (x, i) = answers[str(number)], inputs_of(number)
            assert isinstance(answer, InferResponse), answer
            values = {tensor.name: tensor.to_array() for tensor in answer.outputs}
            assert np.array_equal(values["y"], 2 * x + TABLE[i]), number

        topics.check_repeated(delivery)
        running.cancel()
    topics.close()
