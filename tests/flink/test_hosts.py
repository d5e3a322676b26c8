"""A job on a cluster of two machines, where records and tickets cross a network."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferResponse
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.ports import free_port
from tests.flink.conftest import MODES
from tests.flink.hosts import Hosts, machines
from tests.flink.models import TABLE, write_cut_model, write_repository
from tests.flink.service import Topics
from tests.flink.slow_backend import SlowBackend
from tests.flink.test_credits import double
from tests.flink.test_stages import steps

UNIT_S, UNITS = 0.1, 40


@pytest.mark.recovery
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", MODES)
def test_urgent_requests_pass_on_two_machines(tmp_path: Path, mode: str) -> None:
    repository, quick = tmp_path / "repository", tmp_path / "quick"
    write_repository(repository)
    write_cut_model(repository, "[batching]\nmax_rows = 1\nshard_rows = 16\n")
    config = Config().replace(
        job={
            "name": f"machines-{mode}",
            "execution_mode": mode,
            "parallelism": 2,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (tmp_path / "state").as_uri(),
        },
        exchange={"claim_from_bytes": 256},
        models={"repository": str(repository)},
    )
    port, controller = free_port(), free_port()
    with machines(2) as (network, made):
        address = f"{network}.1:{port}"
        settings = {
            "listeners": f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://127.0.0.1:{controller}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{address}",
        }
        with (
            KafkaBroker(tmp_path / "kafka", port, settings=settings) as broker,
            Hosts(tmp_path / "flink", network, made, slots=5) as cluster,
        ):
            topics = Topics(broker, config)
            config = topics.config.replace(kafka={"bootstrap_servers": address})
            running = job.start(config, cluster.url, SlowBackend("steps", UNIT_S, str(quick)))
            topics.ask(*(double(1) for _ in range(8)), timeout_s=150)

            many = [steps(1, priority=9) for _ in range(UNITS)]
            topics.send(*(codec.encode_request(each) for each in many))
            while not any(each.id in topics.answers for each in many):
                topics.read_answers()
            topics.ask(steps(1, priority=1))
            assert sum(each.id not in topics.answers for each in many) > UNITS / 3

            quick.touch()
            sent = [ask(rows) for rows in (1, 7, 16, 17, 100, 333) * 4 for ask in (steps, double)]
            for request, answer in zip(sent, topics.ask(*sent), strict=True):
                assert isinstance(answer, InferResponse), answer
                x = request.inputs[0].to_array()
                y = next(tensor.to_array() for tensor in answer.outputs if tensor.name == "y")
                added = TABLE[request.inputs[1].to_array()] if request.model_name == "steps" else 2
                assert np.array_equal(y, 2 * x + added)
            topics.await_answers(each.id for each in many)
            assert running.status() == "RUNNING"
            running.cancel()
            topics.close()
            logs = cluster.logs()
        assert "no report came back" not in logs
