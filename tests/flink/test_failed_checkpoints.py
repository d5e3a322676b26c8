"""Checkpoints that fail are seen in `status`, and fail a job with exactly-once delivery."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.jobs.health import JobHealth, healths
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import FIRST_THREAD
from tests.flink.models import FLOAT, _write
from tests.flink.service import Topics


def await_health(rest: FlinkRest, is_reached: Callable[[JobHealth], bool]) -> JobHealth:
    end = time.monotonic() + 60
    while True:
        [health] = healths(rest, rest.jobs())
        if is_reached(health):
            return health
        assert time.monotonic() < end, health
        time.sleep(0.2)


@pytest.mark.recovery
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", FIRST_THREAD)
def test_failed_checkpoints_are_shown_and_fail_the_job(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    _write(tmp_path / "models" / "a" / "1", ["Add x x y"], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])})
    config = Config().replace(
        job={
            "name": "failing",
            "execution_mode": mode,
            "delivery": "exactly-once",
            "parallelism": 1,
            "checkpoint_interval_ms": 300,
            "max_failed_checkpoints": 3,
            "checkpoint_dir": (tmp_path / "checkpoints").as_uri(),
        },
        models={"repository": str(tmp_path / "models")},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    rest = FlinkRest(running.flink_url)
    try:
        await_health(rest, lambda health: health.checkpoints.completed_ms is not None)
        folder = tmp_path / "checkpoints" / "failing" / running.job_id
        folder.rename(tmp_path / "moved")
        folder.touch()  # No checkpoint can be written.
        await_health(rest, lambda health: health.checkpoints.failures > 0 and bool(health.checkpoints.cause))
        failed = await_health(rest, lambda health: bool(health.failure))
        assert "checkpoint" in failed.failure.lower()
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        tensor = Tensor.from_array("x", np.ones(1, np.float32))
        [answer] = topics.ask(InferRequest("a", (tensor,), "after"), timeout_s=100)
        assert isinstance(answer, InferResponse)
        await_health(rest, lambda health: not health.failure and not health.checkpoints.failures)
    finally:
        running.cancel()
        topics.close()
