"""A job is its state: killed with its cluster, drained or cancelled, it goes on where it stopped.

requests  |---- 120 ----|---- 120 ----|--|---- 120 ----|
job       |----------- X  |-------- drain  |------- cancel  |----- all answers, none doubled
                        kill of all       started again, each time from the newest state of its name
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.job import RunningJob
from anabranch.flink_job.state.saved_state import SavedState
from anabranch.flink_job.state.state_directory import StateDirectory, starting_point
from anabranch.jobs.control import JobControl
from anabranch.jobs.keeper import JobKeeper
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import RUNS
from tests.flink.models import write_repository
from tests.flink.service import Topics, await_checkpoint
from tests.flink.slow_backend import SlowBackend

COUNT = 120
PATIENT = "[batching]\nshard_rows = 16\nmax_rows = 1000\nmax_delay_ms = 8000\n"
#: Every 15th request is split into shards.
SPLIT_EVERY = 15


def rows_of(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = 60 if number % SPLIT_EVERY == 0 else 1
    return number + np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)


def request(number: int) -> InferRequest:
    return InferRequest("double", (Tensor.from_array("x", rows_of(number)),), str(number))


def configured(folder: Path, mode: str, delivery: str, name: str, **job_settings: object) -> Config:
    """Writes models whose small requests wait up to eight seconds for a batch."""
    write_repository(folder / "models")
    (folder / "models" / "double" / "model.toml").write_text(PATIENT)
    settings = {
        "name": f"{name}-{mode}-{delivery}",
        "execution_mode": mode,
        "delivery": delivery,
        "parallelism": 2,
        "checkpoint_interval_ms": 500,
        "checkpoint_dir": (folder / "checkpoints").as_uri(),
    }
    return Config().replace(job=settings | job_settings, models={"repository": str(folder / "models")})


def start(topics: Topics, cluster: FlinkCluster, state: SavedState | None = None) -> RunningJob:
    return job.start(topics.config, cluster.url, backend=SlowBackend(), state=state)


def newest(topics: Topics) -> SavedState:
    state = starting_point(topics.config)
    assert state is not None
    return state


def send(topics: Topics, numbers: range) -> None:
    topics.send(*(codec.encode_request(request(number)) for number in numbers))


def send_and_stop_amid(topics: Topics, cluster: FlinkCluster, running: RunningJob, numbers: range) -> None:
    """Sends requests, and returns after a checkpoint while most of them wait."""
    send(topics, numbers)
    await_checkpoint(cluster, running.job_id)
    topics.read_answers()
    assert not {str(number) for number in numbers} <= topics.answers.keys(), "nothing is under way"


def check_answers(topics: Topics, numbers: range, timeout_s: float = 180) -> None:
    answers = topics.await_answers((str(number) for number in numbers), timeout_s)
    for number in numbers:
        answer = answers[str(number)]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), 2 * rows_of(number) + 2), number


@pytest.mark.recovery
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mode", "delivery"), RUNS)
def test_job_killed_drained_or_cancelled_loses_nothing(
    broker: KafkaBroker, tmp_path: Path, mode: str, delivery: str
) -> None:
    topics = Topics(broker, configured(tmp_path, mode, delivery, "restart"))
    assert starting_point(topics.config) is None
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        running = start(topics, cluster)
        topics.ask(request(0), timeout_s=90)

        send_and_stop_amid(topics, cluster, running, range(1, COUNT))
        cluster.kill()
        cluster.start()
        state = newest(topics)
        assert state.kind == "checkpoint"
        running = start(topics, cluster, state)

        send_and_stop_amid(topics, cluster, running, range(COUNT, 2 * COUNT))
        path = running.drain(f"{topics.config.job.state_url}/stopped")
        send(topics, range(2 * COUNT, 2 * COUNT + 9))
        state = newest(topics)
        assert (state.path, state.kind) == (path, "stopped")
        running = start(topics, cluster, state)

        send_and_stop_amid(topics, cluster, running, range(2 * COUNT + 9, 3 * COUNT))
        running.cancel()
        await_free_slots(cluster, 2)
        state = newest(topics)
        assert state.kind == "checkpoint"
        running = start(topics, cluster, state)

        check_answers(topics, range(3 * COUNT))
        topics.check_repeated(delivery)
        await_checkpoint(cluster, running.job_id)
        kept = StateDirectory(topics.config).states()
        assert len(kept) <= 4, [each.path for each in kept]
        running.cancel()
    topics.close()


def await_free_slots(cluster: FlinkCluster, slots: int) -> None:
    end = time.monotonic() + 60
    while cluster.rest.get("/overview")["slots-available"] < slots:
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_attached_run_submits_a_lost_job_again(broker: KafkaBroker, tmp_path: Path) -> None:
    topics = Topics(broker, configured(tmp_path, "thread", "exactly-once", "attached"))
    told: list[str] = []
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster, ThreadPoolExecutor(1) as threads:
        keeper = JobKeeper(topics.config, cluster.url, job.read_models(topics.config), told.append)
        keeper.start()
        keeper.await_serving()
        first = keeper.running.job_id
        ended = threads.submit(keeper.wait)
        try:
            send(topics, range(60))
            await_checkpoint(cluster, first)
        finally:
            cluster.kill()
        cluster.start()
        check_answers(topics, range(60))
        topics.check_repeated("exactly-once")
        assert keeper.running.job_id != first
        assert "/chk-" in (keeper.started_from or "")
        assert f"The cluster at {cluster.url} has lost the job: submitting it again." in told
        JobControl(cluster.rest).cancel(JobControl(cluster.rest).find())
        with pytest.raises(Exception, match="cancel"):
            ended.result(timeout=30)
    topics.close()
