"""`anabranch logs` on a real stack shows the traceback of a planted defect first."""

import json
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from pyflink.common import Types

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.stack import local_stack
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.defective_backend import PLANTED, DefectiveBackend
from tests.flink.service import Topics
from tests.stack.test_flink_cluster import remote

ANABRANCH = Path(sys.executable).with_name("anabranch")
BUG = "bug of a user function"


def fail(_: int) -> int:
    raise ValueError(BUG)


def logs(folder: Path, *arguments: str) -> str:
    command = [str(ANABRANCH), "logs", "--data-dir", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.stack
@pytest.mark.timeout(240)
def test_logs_show_tracebacks_of_planted_defects_first(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path
) -> None:
    config = Config().replace(job={"parallelism": 1}, models={"repository": str(model_repository)})
    topics = Topics(broker, config)
    stack, _ = local_stack.up(tmp_path, task_managers=2, kafka_port=0, flink_port=0)
    assert stack.flink_url is not None
    try:
        job.start(topics.config, stack.flink_url, backend=DefectiveBackend())
        a, b = (Tensor.from_array(name, np.ones((1, 3), np.float32)) for name in "ab")
        topics.ask(InferRequest("pair", (a, b), "defective"), timeout_s=120)
        lines = logs(tmp_path).splitlines()
        assert "task-manager" in lines[0]
        assert "defect in phase batch" in lines[0]
        assert lines[1].endswith("| Traceback (most recent call last):")
        process = lines[0].partition(" | ")[0]
        errors = [line for line in logs(tmp_path, "--errors").splitlines() if line.startswith(f"{process} | ")]
        assert f"{process} | LookupError: {PLANTED}" in errors
        assert lines.index(f"{process} | LookupError: {PLANTED}") < next(
            number for number, line in enumerate(lines) if line.startswith("broker | ")
        )

        rest = FlinkRest(stack.flink_url)
        env = remote(rest.url, "thread")
        env.from_collection([1], Types.INT()).map(fail, Types.INT()).print()
        failing = str(env.execute_async("failing").get_job_id())
        give_up_at = monotonic() + 60
        while BUG not in rest.last_failure(failing):
            assert monotonic() < give_up_at
            sleep(0.1)
        first = json.loads(logs(tmp_path, "-o", "json").splitlines()[0])
        assert (first["kind"], first["source"]) == ("job_failure", "job failing")
        assert f"ValueError: {BUG}" in first["text"] or f"ValueError'>: {BUG}" in first["text"]
        shown = logs(tmp_path)
        assert shown.startswith("job failing | ")
        assert shown.index(BUG) < shown.index(PLANTED) < shown.index("broker | ")
    finally:
        topics.close()
        local_stack.down(tmp_path)
