"""Waiting requests are answered at the end of a bounded input (backfill) and of a drained job."""

import time
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.model import Batching
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import Topics

ROWS = [np.full((1 if n % 100 else 300, 4), n, np.float32) for n in range(501)]


def waiting_topics(broker: KafkaBroker, model_repository: Path, mode: str, *, bounded: bool) -> Topics:
    """Makes batches wait for longer than the test runs, so that only the end releases them."""
    config = Config().replace(
        job={"execution_mode": mode, "parallelism": 2, "bounded": bounded, "checkpoint_interval_ms": 500},
        defaults={"batching": Batching(max_delay_ms=3_600_000.0)},
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    topics.send(
        *(
            codec.encode_request(InferRequest("double", (Tensor.from_array("x", x),), str(n)))
            for n, x in enumerate(ROWS)
        )
    )
    return topics


def check_answers(topics: Topics) -> None:
    answers = topics.await_answers((str(n) for n in range(len(ROWS))), timeout_s=10)
    for n, x in enumerate(ROWS):
        answer = answers[str(n)]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), 2 * x + 2)
    topics.close()


@pytest.mark.parametrize("mode", MODES)
def test_bounded_input_is_answered_to_the_last_record(broker: KafkaBroker, model_repository: Path, mode: str) -> None:
    topics = waiting_topics(broker, model_repository, mode, bounded=True)
    job.start(topics.config).wait()
    check_answers(topics)


@pytest.mark.recovery
@pytest.mark.parametrize("mode", MODES)
def test_drained_job_answers_all_requests_it_has_read(
    broker: KafkaBroker, model_repository: Path, tmp_path: Path, mode: str
) -> None:
    topics = waiting_topics(broker, model_repository, mode, bounded=False)
    running = job.start(topics.config)
    end = time.monotonic() + 60
    while len(topics.answers) < 400:  # full batches leave; the last ones wait
        assert time.monotonic() < end, f"{len(topics.answers)} answers"
        topics.read_answers()
    while topics.read_answers(timeout_ms=2000):
        pass
    assert len(topics.answers) < len(ROWS), "nothing waits, so there is nothing to drain"
    running.drain(tmp_path.as_uri())
    check_answers(topics)
