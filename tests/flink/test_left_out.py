"""Models that load on the client and not on a task: the job serves the others, and says why."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.jobs.health import healths
from anabranch.jobs.keeper import JobKeeper
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.models import FLOAT, Tensors, _write
from tests.flink.service import Topics

X: Tensors = {"x": (FLOAT, ["n"])}
Y: Tensors = {"y": (FLOAT, ["n"])}
CHAIN = """
[chain]
steps = [{ model = "twice.onnx", before = "steps.py:before" }]
inputs.x = { datatype = "FP32", shape = [-1] }
outputs.y = { datatype = "FP32", shape = [-1] }
"""
BAD = ("provider", "panel", "steps")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`good`; `provider`, whose execution provider is missing; `panel` of both; `steps`, whose import fails."""
    for name in ("good", "provider"):
        _write(tmp_path / name / "1", ["Add x x y"], X, Y)
        # A trial on the client would find the missing provider.
        (tmp_path / name / "model.toml").write_text("[batching]\ntrust = true\n")
    with (tmp_path / "provider" / "model.toml").open("a") as file:
        file.write("[session]\nproviders = ['NoSuchProvider']\n")
    (tmp_path / "panel").mkdir()
    (tmp_path / "panel" / "model.toml").write_text('[ensemble]\nmembers = ["good", "provider"]\n')
    _write(tmp_path / "steps", ["Add x x y"], X, Y, file="twice.onnx")
    (tmp_path / "steps" / "model.toml").write_text(CHAIN)
    (tmp_path / "steps" / "steps.py").write_text("import no_such_package\n\ndef before(tensors):\n    return tensors\n")
    return tmp_path


@pytest.fixture(params=MODES)
def topics(request: pytest.FixtureRequest, broker: KafkaBroker, repository: Path) -> Iterator[Topics]:
    config = Config().replace(
        job={"execution_mode": request.param, "parallelism": 1, "checkpoint_interval_ms": 2000},
        models={"repository": str(repository)},
    )
    made = Topics(broker, config)
    yield made
    made.close()


def ask(model: str) -> InferRequest:
    inputs = (Tensor.from_array("x", np.ones(2, np.float32)),)
    return InferRequest(model_name=model, model_version="", id=model, inputs=inputs)


def await_left_out(rest: FlinkRest) -> set[str]:
    """Returns the models that `status` names; Flink shows metrics after at most 10 s."""
    end = time.monotonic() + 60
    found: set[str] = set()
    while time.monotonic() < end and found != set(BAD):
        [health] = healths(rest, rest.jobs())
        found = {each.name for each in health.left_out}
        time.sleep(0.5)
    return found


@pytest.mark.timeout(600)
def test_model_that_tasks_cannot_load_is_left_out(topics: Topics) -> None:
    told: list[str] = []
    keeper = JobKeeper(topics.config, None, job.read_models(topics.config), told.append)
    keeper.start()
    try:
        keeper.await_serving()
        rest = FlinkRest(keeper.running.flink_url)
        if topics.config.job.execution_mode == "thread":
            assert {each.name for each in keeper.left_out} == set(BAD)
            for reason in ("unknown execution provider NoSuchProvider", "No module named 'no_such_package'"):
                assert sum(reason in line for line in told) >= 1, told
        answers = topics.ask(*map(ask, ("good", *BAD)), timeout_s=110)
        assert isinstance(answers[0], InferResponse)
        for name, answer, reason in zip(
            BAD, answers[1:], ("NoSuchProvider", "provider/1", "no_such_package"), strict=True
        ):
            assert isinstance(answer, ErrorResponse)
            assert answer.code == "model_unavailable", (name, answer)
            assert reason in answer.message
        assert await_left_out(rest) == set(BAD)
        assert keeper.running.status() == "RUNNING"
    finally:
        keeper.running.cancel()
