import time

import numpy as np
import pytest

from anabranch.client import Client
from anabranch.demo import reference, workload
from anabranch.demo.features import INPUT_NAME, LABELS, MODEL_NAME, OUTPUT_NAME, TOKENS
from anabranch.demo.reference import TOLERANCE
from anabranch.messaging.errors import NoAnswer
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Array, Tensor
from anabranch.testing import Answer, FakeJob


def scores_of(tokens: Array) -> Array:
    """Replaces the model: other scores for other tokens."""
    return np.repeat(tokens[:, :1].astype(np.float32) / 7, LABELS, axis=1)


def serve(request: InferRequest) -> list[Answer]:
    (tensor,) = request.inputs
    assert (request.model_name, tensor.name) == (MODEL_NAME, INPUT_NAME)
    tokens = tensor.to_array()
    if tokens[0, 0] == 13:
        return [ErrorResponse(request.id, "inference_failed", "unlucky")]
    parameters = {"shards": 64, "tasks": 2} if request.parameters.get("explain") else {}
    output = Tensor.from_array(OUTPUT_NAME, scores_of(tokens))
    return [InferResponse(MODEL_NAME, "1", request.id, (output,), parameters)]


@pytest.fixture
def client(job: FakeJob) -> Client:
    job.answer = serve
    return job.client(timeout_s=20)


def numbered(count: int, first: int = 100) -> Array:
    return np.repeat(np.arange(first, first + count, dtype=np.int32)[:, np.newaxis], TOKENS, axis=1)


def test_stream_failed_request_is_counted(client: Client) -> None:
    tokens = numbered(50)
    tokens[20] = 13
    done: list[int] = []
    with client:
        answers = workload.stream(client, tokens, 8, lambda: done.append(1))
    assert len(done) == 50
    assert list(answers.failures) == [20]
    assert answers.answered == 49
    assert reference.differing_rows(answers.scores, scores_of(tokens)).tolist() == [20]
    assert 0 < answers.per_second < 49 / answers.elapsed_s * 1.01
    p50_ms, p99_ms = answers.latency_ms(50, 99)
    assert 0 < p50_ms <= p99_ms < 20_000


@pytest.mark.slow
def test_wait_until_served_silent_job_is_asked_again(client: Client, job: FakeJob) -> None:
    asked: list[str] = []

    def serve_the_second(request: InferRequest) -> list[Answer]:
        asked.append(request.id)
        return serve(request) if len(asked) > 1 else []

    job.answer = serve_the_second
    silences: list[int] = []
    with client:
        workload.wait_until_served(client, numbered(1), 20, 0.5, lambda: silences.append(len(asked)))
        assert silences == [1]
        job.answer = lambda _: []
        with pytest.raises(NoAnswer):
            workload.wait_until_served(client, numbered(1), 1, 0.4, lambda: None)


@pytest.mark.slow
def test_pace_requests_are_sent_at_even_intervals(client: Client) -> None:
    tokens = numbered(30)
    with client:
        workload.wait_until_served(client, tokens[:1], 20, 10, pytest.fail)
        start_s = time.monotonic()
        answers = workload.pace(client, tokens, 60, lambda: None)
        took_s = time.monotonic() - start_s
    assert took_s >= 29 / 60
    assert not answers.failures
    assert reference.differing_rows(answers.scores, scores_of(tokens)).size == 0
    assert np.isfinite(answers.latencies_ms).all()


def test_ask_large_answer_has_shards_and_scores(client: Client) -> None:
    tokens = numbered(1_024)
    with client:
        large = workload.ask_large(client, tokens, 20)
    assert (large.shards, large.tasks) == (64, 2)
    np.testing.assert_array_equal(large.scores, scores_of(tokens))


def test_ask_large_failure_is_raised(client: Client) -> None:
    with client, pytest.raises(AnabranchError, match="unlucky"):
        workload.ask_large(client, numbered(2, first=13), 20)


def test_differing_rows_over_tolerance_are_found() -> None:
    right = np.linspace(0, 1, 4 * LABELS, dtype=np.float32).reshape(4, LABELS)
    got = right.copy()
    got[1, 5] += 0.5 * TOLERANCE
    got[2, 7] += 2 * TOLERANCE
    got[3, 0] = np.nan
    assert reference.differing_rows(got, right).tolist() == [2, 3]
