"""A job on a cluster of two machines, where records and tickets cross a network."""

from pathlib import Path

import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.ports import free_port
from tests.flink.conftest import MODES
from tests.flink.hosts import Hosts, machines
from tests.flink.models import write_cut_model, write_repository
from tests.flink.service import Topics
from tests.flink.slow_backend import SlowBackend
from tests.flink.test_credits import UNIT_S, check_answers, check_urgent_passes, double


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

            many = check_urgent_passes(topics)
            quick.touch()
            check_answers(topics)
            topics.await_answers(each.id for each in many)
            assert running.status() == "RUNNING"
            running.cancel()
            topics.close()
            logs = cluster.logs()
        assert "no report came back" not in logs
