"""A run without end, or without bounds, fails its own request: neighbours and checkpoints go on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.models import FLOAT, INT64, _write
from tests.flink.service import Topics
from tests.onnx_runtime.loops import write_loop


def turns(name: str, count: int) -> InferRequest:
    return InferRequest("loop", (Tensor.from_array("n", np.array([[count]], np.int64)),), name)


@pytest.mark.parametrize("mode", MODES)
def test_job_unbounded_run_fails_its_own_request_only(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str
) -> None:
    shutil.copytree(model_repository / "double", tmp_path / "double")
    write_loop(tmp_path / "loop" / "1", max_run_ms=500)
    _write(tmp_path / "zeros" / "1", ["ConstantOfShape n y"], {"n": (INT64, [1])}, {"y": (FLOAT, ["k"])})
    topics = Topics(
        broker, Config().replace(job={"execution_mode": mode, "parallelism": 1}, models={"repository": str(tmp_path)})
    )
    running = job.start(topics.config)
    try:
        endless, huge, *others = topics.ask(
            turns("endless", 2**62),
            InferRequest("zeros", (Tensor.from_array("n", np.array([40 * 10**9])),), "huge"),
            *(turns(f"loop-{count}", count) for count in range(1, 6)),
            *(
                InferRequest("double", (Tensor.from_array("x", np.full((1, 4), row, np.float32)),), f"double-{row}")
                for row in range(5)
            ),
        )
        assert isinstance(endless, ErrorResponse)
        assert endless.code == "run_too_long"
        assert isinstance(huge, ErrorResponse)
        assert huge.code == "out_of_memory"
        assert all(isinstance(answer, InferResponse) for answer in others)
        values = [answer.outputs[0].to_array().ravel()[0] for answer in others if isinstance(answer, InferResponse)]
        assert values == [1, 2, 3, 4, 5, 2, 4, 6, 8, 10]
        letters = {letter.id: letter.code for letter in topics.await_letters(2)}
        assert letters == {"endless": "run_too_long", "huge": "out_of_memory"}
        assert running.status() == "RUNNING"
    finally:
        running.cancel()
        topics.close()
