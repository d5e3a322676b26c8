"""The example with payments through a job, in both modes."""

import pytest
from msgspec.structs import replace

from anabranch.flink_job import job
from anabranch.flink_job.config import load
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from anabranch.topics import topics_of
from examples.payments import events
from tests.docs.pages import ROOT
from tests.flink.conftest import FIRST_THREAD
from tests.flink.service import PARTITIONS


@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", FIRST_THREAD)
def test_example_streams_payments_through_a_job(
    broker: KafkaBroker, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load(ROOT / "examples/payments/anabranch.toml").replace(
        kafka={"bootstrap_servers": broker.bootstrap_servers, "group_id": f"payments-{mode}"},
        job={"execution_mode": mode, "checkpoint_interval_ms": 1000},
    )
    topic = f"payments-{mode}"
    flow = replace(config.flow[0], source=topic, to=f"{topic}-scored")
    config = replace(config, flow=(flow,))
    made = {topic.name for topic in topics_of(config)}
    assert {flow.source, flow.to} <= made
    broker.create_topics(*(Topic(name, PARTITIONS) for name in made))
    running = job.start(config)
    assert events.stream(broker.bootstrap_servers, 1000, topic) == 990
    assert running.status() == "RUNNING"
    running.cancel()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 10
    assert all(line.startswith("payment-") for line in printed[:-1])
