"""`anabranch.testing` as a user's tests see it: no Kafka, no Flink."""

import logging
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from anabranch import (
    Client,
    InferenceFailed,
    InternalError,
    NoAnswer,
    Overloaded,
    RequestTooLarge,
    TopicMissing,
    UnknownModel,
    UnknownOutput,
)
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Array
from anabranch.testing import Answer, FakeJob
from tests.anabranch.conftest import Topics


def double(inputs: Mapping[str, Array]) -> Mapping[str, npt.ArrayLike]:
    return {"y": 2 * inputs["x"], "rows": [len(inputs["x"])]}


def test_fake_job_model_function_answers() -> None:
    with FakeJob({"double": double}) as job, job.client() as client:
        result = client.infer("double", {"x": np.array([1.5, 2.0], np.float32)}, priority=1)
        assert result["y"].tolist() == [3.0, 4.0]
        assert result["rows"].tolist() == [2]
        assert (result.model_name, result.model_version) == ("double", "1")
        assert list(client.infer("", {"x": np.array([1])}, version="7", outputs=["y"], key="k")) == ["y"]
    assert [dict(request.parameters) for request in job.requests] == [{"priority": 1}, {}]
    assert job.received[1].key == b"k"


def test_fake_job_unknown_names_are_errors_of_a_job() -> None:
    with FakeJob({"a": double, "b": double}) as job, job.client() as client:
        with pytest.raises(UnknownModel, match="unknown model 'c'; available: a, b"):
            client.infer("c", {"x": np.zeros(1)})
        with pytest.raises(UnknownOutput, match="unknown output 'z'; available: y, rows"):
            client.infer("a", {"x": np.zeros(1)}, outputs=["z"])


def test_fake_job_function_errors_reach_the_client() -> None:
    def overloaded(inputs: Mapping[str, Array]) -> Mapping[str, npt.ArrayLike]:
        raise Overloaded("try later")

    with FakeJob({"busy": overloaded, "broken": double}) as job, job.client() as client:
        with pytest.raises(Overloaded, match="try later"):
            client.infer("busy", np.zeros(1))
        with pytest.raises(InferenceFailed, match="KeyError: 'x'"):
            client.infer("broken", {"z": np.zeros(1)})


def test_fake_job_answer_defect_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    def defect(request: InferRequest) -> list[Answer]:
        raise RuntimeError("defect of the test")

    with caplog.at_level(logging.ERROR), FakeJob(answer=defect) as job, job.client() as client:
        with pytest.raises(InternalError, match="RuntimeError: defect of the test"):
            client.infer("m", np.zeros(1))
        job.answer = lambda request: []
        with pytest.raises(NoAnswer):
            client.infer("m", np.zeros(1), timeout_s=0.2)
    assert "RuntimeError: defect of the test" in caplog.text
    assert job.respond(b"noise", b"") == []


def test_fake_job_client_keeps_the_size_limit() -> None:
    with FakeJob() as job, job.client(max_message_bytes=1000) as client, pytest.raises(RequestTooLarge):
        client.infer("m", np.zeros(1000))


def test_fake_job_serves_a_client_of_the_tested_code() -> None:
    with FakeJob() as job, Client("ignored:9092", connection=job.connection(), timeout_s=20) as client:
        assert client.infer("m", np.array([1]))[""].tolist() == [1]


def test_fake_job_models_and_answer_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        FakeJob({}, answer=lambda request: [])


def test_fake_job_listen_without_topic_is_refused(topics: Topics) -> None:
    with FakeJob() as job, pytest.raises(TopicMissing, match="has no topic 'nowhere'"):
        job.listen(topics.bootstrap_servers, requests_topic="nowhere", responses_topic=topics.responses_topic)


@pytest.mark.slow
def test_client_modules_load_no_server_package() -> None:
    script = "import sys, anabranch.testing, anabranch.client, anabranch.errors; anabranch.ModelLoadFailed; "
    script += "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    server = {"apache_beam", "onnx", "onnxruntime", "psutil", "pyflink", "rich", "typer"}
    assert not server & set(loaded)
    assert {"kafka", "msgspec", "numpy"} <= set(loaded)
