from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from anabranch.schemas.messages import InferRequest
from anabranch.schemas.wire import codec
from bench.workloads.models import FFNN, make_repository
from bench.workloads.workload import Workload, ffnn_rows


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"))


def test_workload_messages_differ_only_in_id(tiny_workload: Workload) -> None:
    assert tiny_workload.message(7) == b"head-000000000007-two"
    assert tiny_workload.message(8) == b"head-000000000008-one"
    assert tiny_workload.answer(7).tolist() == [0.25, 0.75]


def test_workload_saved_file_loads_equal(tiny_workload: Workload, tmp_path: Path) -> None:
    tiny_workload.save(tmp_path / "w.npz")
    loaded = Workload.load(tmp_path / "w.npz")
    assert (loaded.name, loaded.message(1)) == (tiny_workload.name, tiny_workload.message(1))
    assert np.array_equal(loaded.answers, tiny_workload.answers)


def test_workload_requests_and_answers_are_a_clients(repository: Path) -> None:
    workload = ffnn_rows(repository)
    request = codec.decode_request(workload.message(3))
    assert isinstance(request, InferRequest)
    assert (request.model_name, request.id) == (FFNN, "000000000003")
    session = onnxruntime.InferenceSession(repository / FFNN / "1" / "model.onnx")
    (scores,) = session.run(None, {"x": request.inputs[0].to_array()})
    assert np.allclose(scores[0], workload.answer(3), atol=1e-6)


def test_workload_of_unequal_lengths_loads_equal(tmp_path: Path) -> None:
    requests = [np.frombuffer(text, np.uint8) for text in (b"@@@@@@@@@@@@", b"m@@@@@@@@@@@@-long")]
    workload = Workload("unequal", requests, [np.zeros(1, np.float32), np.arange(3, dtype=np.float32)])
    workload.save(tmp_path / "w.npz")
    loaded = Workload.load(tmp_path / "w.npz")
    assert [loaded.message(number) for number in (2, 3)] == [b"000000000002", b"m000000000003-long"]
    assert [loaded.answer(number).tolist() for number in (2, 3)] == [[0.0], [0.0, 1.0, 2.0]]
