"""A bounded run (backfill) ends by itself and leaves nothing behind in state."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.stack.broker import Broker
from flink_job import job
from flink_job.config import Config
from schemas import codec
from schemas.messages import InferRequest, InferResponse
from schemas.model import Batching
from schemas.tensors import Tensor
from tests.flink.conftest import MODES
from tests.flink.service import Topics


@pytest.mark.parametrize("mode", MODES)
def test_a_bounded_input_is_answered_to_the_last_record(broker: Broker, model_repository: Path, mode: str) -> None:
    config = Config().replace(
        job={"execution_mode": mode, "parallelism": 2, "bounded": True, "checkpoint_interval_ms": 500},
        # Batches would wait for longer than the test runs: only the end of the input lets them go.
        defaults={"batching": Batching(max_delay_ms=3_600_000.0)},
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    rows = [np.full((1 if n % 100 else 300, 4), n, np.float32) for n in range(501)]
    topics.send(
        *(
            codec.encode_request(InferRequest("double", (Tensor.from_array("x", x),), str(n)))
            for n, x in enumerate(rows)
        )
    )
    job.start(topics.config).wait()
    answers = topics.await_answers((str(n) for n in range(len(rows))), timeout_s=10)
    for n, x in enumerate(rows):
        answer = answers[str(n)]
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), 2 * x + 2)
    topics.close()
