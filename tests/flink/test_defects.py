"""Bugs leave their traceback in the task's log and a count in Flink, in both execution modes."""

import time
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import ErrorResponse, InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.defective_backend import PLANTED, TRUNCATED_BYTES, DefectiveBackend
from tests.flink.service import Topics

DEFECTIVE = 30


def requests() -> tuple[list[InferRequest], InferRequest]:
    """Requests that meet a bug, and one whose shards arrive truncated."""
    a, b = (Tensor.from_array(name, np.ones((1, 3), np.float32)) for name in "ab")
    defective = [InferRequest("pair", (a, b), f"{time.time_ns()}-{n}") for n in range(DEFECTIVE)]
    x = Tensor.from_array("x", np.ones((100, 4), np.float32))
    return defective, InferRequest("double", (x,), f"{time.time_ns()}-split")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", MODES)
def test_defects_are_logged_with_traceback_and_counted(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str
) -> None:
    config = Config().replace(
        job={"name": f"defects-{mode}", "execution_mode": mode, "parallelism": 1},
        models={"repository": str(model_repository)},
        scheduling={"window_timeout_ms": 5000},
    )
    topics = Topics(broker, config)
    defective, split = requests()
    with FlinkCluster(tmp_path / "cluster", task_managers=1, log_dir=tmp_path / "logs") as cluster:
        running = job.start(topics.config, cluster.url, backend=DefectiveBackend())
        *failed, incomplete = topics.ask(*defective, split, timeout_s=120)
        for answer in failed:
            assert isinstance(answer, ErrorResponse)
            assert answer.code == "internal_error"
        assert isinstance(incomplete, ErrorResponse), "its shards were lost"
        defects = await_defects(cluster, running.job_id)
        assert defects["serve"] >= DEFECTIVE, "a batch that fails is tried again, request by request"
        assert defects["infer"] == 7, "one for each shard"
        running.cancel()
    topics.close()

    log = (tmp_path / "logs" / "task-manager-1.log").read_text()
    serve = tracebacks(log, "batch (serve, task 0, attempt 0): request '")
    assert 1 <= len(serve) <= 3, "one in ten seconds"
    assert f"LookupError: {PLANTED}" in serve[0]
    assert "operators/core/execution/inference_task.py" in serve[0]
    [*_, infer] = tracebacks(log, f"batch (infer, task 0, attempt 0): undecodable SHARD of {TRUNCATED_BYTES} bytes")
    assert "in on_shard" in infer


def tracebacks(log: str, defect: str) -> list[str]:
    """Returns the tracebacks of logged defects whose description starts with `defect`."""
    found = []
    for entry in log.split("defect in phase ")[1:]:
        description, _, rest = entry.partition("\n")
        if description.startswith(defect):
            assert rest.startswith("Traceback (most recent call last):\n")
            found.append(rest)
    return found


def await_defects(cluster: FlinkCluster, job_id: str) -> dict[str, int]:
    """Returns the defects that Flink counted, by operator, once all are counted."""
    end = time.monotonic() + 30
    while True:
        sums = cluster.rest.sums(job_id, lambda names: [name for name in names if name.endswith(".defects")])
        found = {name.split(".")[0]: int(value) for name, value in sums.items()}
        if len(found) == 2 and found.get("infer", 0) >= 7:
            return found
        assert time.monotonic() < end, sums
        time.sleep(0.5)
