"""Requests that meet in a job get the answers that they get alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import ErrorResponse, InferRequest
from anabranch.schemas.model import Catalog
from anabranch.schemas.tensors import Tensor
from anabranch.stack.kafka.broker import KafkaBroker
from tests.company import KINDS, alone, read, write_kind
from tests.flink.conftest import MODES
from tests.flink.service import Topics

MODELS = ("dense", "running sum", "dynamic quantisation", "non zero, nameless", "time major")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("company")
    for name in MODELS:
        write_kind(folder, KINDS[name], name)
        # Requests of a burst meet.
        (folder / name / "model.toml").write_text("[batching]\nmax_delay_ms = 200\n")
    return read(folder)


@pytest.fixture(scope="module", params=MODES)
def company(request: pytest.FixtureRequest, broker: KafkaBroker, served: Catalog) -> Iterator[Topics]:
    config = Config().replace(
        job={"execution_mode": request.param, "parallelism": 2, "checkpoint_interval_ms": 2000},
        models={"repository": str(Path(served.find("dense", "").path).parents[2])},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    yield topics
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()


@pytest.mark.parametrize("name", MODELS)
def test_answers_of_a_burst_equal_those_alone(company: Topics, served: Catalog, name: str) -> None:
    rng = np.random.default_rng(9)
    feeds = [KINDS[name].feed(rng, int(rows)) for rows in rng.integers(1, 80, 60)]
    tensors = [tuple(Tensor.from_array(each, array) for each, array in feed.items()) for feed in feeds]
    answers = company.ask(*(InferRequest(name, given, f"{name} {number}") for number, given in enumerate(tensors)))
    for feed, answer in zip(feeds, answers, strict=True):
        assert not isinstance(answer, ErrorResponse), answer
        expected = alone(served.find(name, ""), feed)
        for tensor in answer.outputs:
            np.testing.assert_allclose(tensor.to_array(), expected[tensor.name], rtol=2e-3, atol=1e-5)
