"""One of two tasks reads all requests: both run them, unless `balance` is off.

requests --> partition 0 --> [ task A ] -- units --> [ task B ] --> responses
                                 |                                      ^
                                 +--------------------------------------+
"""

import time
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.model import Batching, SessionOptions
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import PARTITIONS, Topics
from tests.flink.slow_backend import SlowBackend

REQUESTS = 200


def request(number: int) -> InferRequest:
    x = Tensor.from_array("x", np.full((1, 4), number, np.float16))
    return InferRequest("half", (x,), f"{time.time_ns()}-{number}", parameters={"explain": True})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("balance", ["offload", "off"])
def test_task_that_is_behind_is_helped_by_an_idle_task(
    broker: KafkaBroker, model_repository: Path, mode: str, balance: Literal["offload", "off"]
) -> None:
    config = Config().replace(
        job={"name": f"{balance}-{mode}", "execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 1000},
        models={"repository": str(model_repository)},
        scheduling={"balance": balance},
        # Calibrations are cached by these options; those of other tests do not hold for slow sessions.
        defaults={"batching": Batching(max_rows=1), "session": SessionOptions(warm_up_rows=2)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config, backend=SlowBackend())
    # Both tasks must run before the load starts.
    first = [request(0) for _ in range(PARTITIONS)]
    for partition, each in enumerate(first):
        topics.send(codec.encode_request(each), partition=partition)
    topics.await_answers((each.id for each in first), timeout_s=150)

    sent = [request(number) for number in range(1, REQUESTS + 1)]
    topics.send(*(codec.encode_request(each) for each in sent), partition=0)
    answers = topics.await_answers((each.id for each in sent), timeout_s=100)
    ran: Counter[object] = Counter()
    for number, each in enumerate(sent, start=1):
        answer = answers[each.id]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), np.full((1, 4), 2 * number, np.float16))
        ran[answer.parameters["task"]] += 1
    if balance == "off":
        assert len(ran) == 1
    else:
        assert ran.keys() == {0, 1}
        # Measured in the idle task: 90 to 93 of 200 in thread mode, 48 to 80 in process mode, probably because the
        # partitioner does not see records that are queued in a Python worker.
        least = REQUESTS / 4 if mode == "thread" else REQUESTS / 10
        assert min(ran.values()) > least, ran
    topics.read_answers(timeout_ms=500)
    assert all(len(topics.answers[each.id]) == 1 for each in sent)
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()
