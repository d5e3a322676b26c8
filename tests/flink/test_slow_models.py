"""A job serves a saturated slow model and a quick one; `tests/core/test_slow_batches.py` has their latencies."""

import time
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse, Parameter
from anabranch.schemas.model import Batching, SessionOptions
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import PARTITIONS, Topics
from tests.flink.slow_backend import SlowBackend

SLOW_S = 0.8
SLOW, QUICK = 14, 10


def request(model: str, number: int, **parameters: Parameter) -> InferRequest:
    datatype = np.float16 if model == "half" else np.float32
    x = Tensor.from_array("x", np.full((1, 4), number, datatype))
    return InferRequest(model, (x,), f"{model}-{time.time_ns()}-{number}", parameters=parameters)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_slow_model_beside_a_quick_one_answers_all(broker: KafkaBroker, model_repository: Path, mode: str) -> None:
    config = Config().replace(
        job={"name": f"slow-{mode}", "execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 1000},
        models={"repository": str(model_repository)},
        # Calibrations are cached by these options; those of other tests do not hold for slow sessions.
        defaults={"batching": Batching(max_rows=1), "session": SessionOptions(warm_up_rows=3)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config, backend=SlowBackend("half", SLOW_S))
    # Both tasks must run before the load starts.
    first = [request("double", number) for number in range(PARTITIONS)]
    for partition, each in enumerate(first):
        topics.send(codec.encode_request(each), partition=partition)
    topics.await_answers((each.id for each in first), timeout_s=150)

    slow = [request("half", number) for number in range(SLOW)]
    topics.send(*(codec.encode_request(each) for each in slow))
    for number in range(QUICK):
        [answer] = topics.ask(request("double", number, priority=1))
        assert isinstance(answer, InferResponse), answer
    answers = topics.await_answers((each.id for each in slow), timeout_s=100)
    for number, each in enumerate(slow):
        answer = answers[each.id]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), np.full((1, 4), 2 * number, np.float16))
    topics.read_answers(timeout_ms=500)
    assert all(len(seen) == 1 for seen in topics.answers.values())
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()
