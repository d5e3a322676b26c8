"""Fixtures of this folder: a fake job in memory, and one behind a real broker."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient, NewTopic

from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.testing import FakeJob

MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Topics:
    """Topics of a test module."""

    bootstrap_servers: str
    requests_topic: str
    responses_topic: str


class KafkaJob(FakeJob):
    """A fake job behind a broker."""

    def __init__(self, topics: Topics) -> None:
        super().__init__()
        self.topics = topics
        self.listen(
            topics.bootstrap_servers, requests_topic=topics.requests_topic, responses_topic=topics.responses_topic
        )


@pytest.fixture
def job() -> Iterator[FakeJob]:
    with FakeJob() as fake:
        yield fake


@pytest.fixture(scope="module")
def topics(broker: KafkaBroker) -> Topics:
    suffix = uuid.uuid4().hex[:8]
    names = (f"requests-{suffix}", f"responses-{suffix}")
    admin: Any = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    limits = {"max.message.bytes": str(MAX_MESSAGE_BYTES + 65_536)}
    admin.create_topics([NewTopic(name, 3, 1, topic_configs=limits) for name in names])
    admin.close()
    return Topics(broker.bootstrap_servers, *names)


@pytest.fixture
def kafka_job(topics: Topics) -> Iterator[KafkaJob]:
    with KafkaJob(topics) as fake:
        yield fake
