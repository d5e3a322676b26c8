"""Ensembles in the job, in both execution modes: several models at once, one answer."""

import numpy as np
import pytest

from anabranch.schemas.messages import Encoding, ErrorResponse, InferResponse
from anabranch.schemas.tensors import Array
from tests.flink.service import Topics
from tests.flink.test_serving import ask, request, values

FORMS = pytest.mark.parametrize("encoding", list(Encoding))


def rows(count: int) -> Array:
    return np.arange(4 * count, dtype=np.float32).reshape(count, 4)


@FORMS
@pytest.mark.parametrize("count", [1, 3, 500])
def test_ensemble_merges_rows_for_any_number_of_shards(service: Topics, encoding: Encoding, count: int) -> None:
    answer = ask(service, request("halfway", {"x": rows(count)}, encoding=encoding, explain=True))
    assert np.array_equal(values(answer)["y"], 2 * rows(count) + np.float32(1.5))
    assert (answer.model_name, answer.model_version) == ("halfway", "1")
    assert answer.parameters["shards"] == 2 * -(-count // 16)


def test_ensemble_merges_models_without_a_batch_axis(service: Topics) -> None:
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    answer = ask(service, request("extremes", {"x": x}))
    assert values(answer)["y"].tolist() == [45, 9]


@pytest.mark.parametrize("count", [4, 200])
def test_ensemble_of_the_rest_names_the_failed_member(service: Topics, count: int) -> None:
    i = np.arange(count) % 8
    answer = ask(service, request("careful", {"i": i}))
    assert values(answer)["y"].tolist() == (i * 10).tolist()
    assert not answer.parameters
    i[count // 2] = 99
    answer = ask(service, request("careful", {"i": i}))
    assert values(answer)["y"].tolist() == (i * 10).tolist()
    assert (answer.parameters["missing_members"], answer.parameters["error_code"]) == ("lookup", "inference_failed")
    assert f"member lookup: row {count // 2}" in str(answer.parameters["error_message"])


def test_ensemble_of_all_fails_with_its_member(service: Topics) -> None:
    sent = request("strict", {"i": np.array([1, 99, 2])})
    [answer] = service.ask(sent)
    assert isinstance(answer, ErrorResponse)
    assert (answer.code, answer.model_name) == ("inference_failed", "strict")
    assert "member lookup: row 1" in answer.message
    partial = ask(service, request("strict", {"i": np.array([1, 99, 2])}, partial=True))
    assert values(partial)["y"].tolist() == [10, 20]
    assert partial.parameters["missing_rows"] == "1-1"


def test_ensemble_burst_is_answered_once_each(service: Topics) -> None:
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal((int(count), 4)).astype(np.float32) for count in rng.integers(1, 40, 100)]
    requests = [request(("halfway", "double")[n % 2], {"x": x}) for n, x in enumerate(inputs)]
    for n, (x, answer) in enumerate(zip(inputs, service.ask(*requests), strict=True)):
        assert isinstance(answer, InferResponse), answer
        np.testing.assert_allclose(values(answer)["y"], 2 * x + (1.5, 2)[n % 2], rtol=1e-6, atol=1e-6)
    service.read_answers(timeout_ms=500)
    assert all(len(service.answers[sent.id]) == 1 for sent in requests)
