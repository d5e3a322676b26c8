"""The peers' own code answers right: a benchmark against a broken peer is worth nothing."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.schemas.open_inference_pb2 import ModelInferResponse
from bench.systems.direct_models import DirectModels
from bench.workloads.models import make_repository
from bench.workloads.workload import ffnn_rows, magika_files


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"))


def scores_of(answer: bytes) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    response = ModelInferResponse.FromString(answer)
    return response.id, np.frombuffer(response.raw_output_contents[0], np.float32)


@pytest.mark.slow
def test_direct_models_single_requests_are_answered(repository: Path) -> None:
    models = DirectModels(repository)
    for workload in (ffnn_rows(repository), magika_files(repository)):
        for number in range(3):
            request_id, scores = scores_of(models.answer(workload.message(number)))
            assert int(request_id) == number
            assert np.allclose(scores, workload.answer(number), atol=1e-5)


@pytest.mark.slow
def test_direct_models_batch_of_two_models_is_split(repository: Path) -> None:
    ffnn, magika = ffnn_rows(repository), magika_files(repository)
    workloads = [ffnn, magika, ffnn, ffnn, magika]
    messages = [workload.message(number) for number, workload in enumerate(workloads)]
    answers = dict(DirectModels(repository).answer_batch(messages))
    assert len(answers) == len(workloads)
    for number, workload in enumerate(workloads):
        _, scores = scores_of(answers[b"%012d" % number])
        assert np.allclose(scores, workload.answer(number), atol=1e-5)
