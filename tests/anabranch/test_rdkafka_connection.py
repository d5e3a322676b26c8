"""The gateway's connection to a real broker: its own answers, refusals, and a broker that is away."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from anabranch.flink_job.config import Config
from anabranch.gateway.job_connection import connection_for_job
from anabranch.messaging.connection import KafkaConnection
from anabranch.messaging.errors import BrokerUnreachable, TopicMissing
from anabranch.messaging.rdkafka_connection import RdKafkaConnection
from anabranch.schemas.errors import AnabranchError, RequestTooLarge
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic


def config_of(servers: str, requests: str, responses: str, **properties: Any) -> Config:
    kafka = {
        "bootstrap_servers": servers,
        "requests_topic": requests,
        "responses_topic": responses,
        "properties": properties,
    }
    return Config().replace(kafka=kafka)


class Topics:
    """Topics of requests and answers, and a gateway's connection to them."""

    def __init__(self, broker: KafkaBroker, settings: dict[str, str] | None = None, **properties: Any) -> None:
        self.servers = broker.bootstrap_servers
        self.requests, self.responses = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("requests", "answers"))
        broker.create_topics(Topic(self.requests, 2, settings or {}), Topic(self.responses, 2))
        self.write(b"earlier", 0)
        self.write(b"earlier", 1)
        self.connection = connection_for_job(config_of(self.servers, self.requests, self.responses, **properties))
        self.failed: list[AnabranchError] = []

    @property
    def partition(self) -> int:
        assert isinstance(self.connection, RdKafkaConnection)
        return self.connection.partition

    def write(self, value: bytes, partition: int, **settings: Any) -> None:
        producer = Producer({"bootstrap.servers": self.servers, **settings})
        producer.produce(self.responses, value, key=b"k", partition=partition)
        producer.flush()

    def read(self, count: int, timeout_s: float = 60) -> list[tuple[bytes | None, bytes]]:
        found: list[tuple[bytes | None, bytes]] = []
        end_s = time.monotonic() + timeout_s
        while len(found) < count:
            assert time.monotonic() < end_s, found
            found += self.connection.receive(100)
        return found

    def send(self, message: bytes, headers: Any = ()) -> None:
        self.connection.send(message, b"key", self.failed.append, headers)

    def await_failure(self) -> AnabranchError:
        end_s = time.monotonic() + 60
        while not self.failed:
            assert time.monotonic() < end_s
            list(self.connection.receive(50))
        return self.failed[0]

    def sent(self, count: int) -> list[Any]:
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "look"})
        consumer.assign([TopicPartition(self.requests, number, 0) for number in range(2)])
        found: list[Any] = []
        end_s = time.monotonic() + 60
        while len(found) < count:
            assert time.monotonic() < end_s, found
            record = consumer.poll(0.1)
            found += [record] if record is not None and record.error() is None else []
        consumer.close()
        return found

    def close(self) -> None:
        self.connection.close_sender()
        self.connection.close_receiver()


@pytest.fixture
def topics(broker: KafkaBroker) -> Iterator[Callable[..., Topics]]:
    made: list[Topics] = []

    def make(**options: Any) -> Topics:
        made.append(Topics(broker, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


pytestmark = pytest.mark.system


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_rdkafka_connection_reads_later_answers_of_its_partition(
    topics: Callable[..., Topics], compression: str
) -> None:
    made = topics()
    made.write(b"of another", 1 - made.partition)
    values = [b"%d" % number * 100 for number in range(3)]
    for value in values:
        made.write(value, made.partition, **{"compression.type": compression})
    assert made.read(3) == [(b"k", value) for value in values]
    assert list(made.connection.receive(200)) == []


def test_rdkafka_connection_waits_for_committed_answers(topics: Callable[..., Topics]) -> None:
    made = topics()
    producer = Producer({"bootstrap.servers": made.servers, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions()
    for value, ends in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(made.responses, value, key=b"k", partition=made.partition)
        producer.flush()
        assert list(made.connection.receive(200)) == []
        ends()
    assert made.read(1) == [(b"k", b"committed")]


def test_rdkafka_request_names_its_answers_partition(topics: Callable[..., Topics]) -> None:
    made = topics()
    made.send(b"request", [("traceparent", b"00")])
    [record] = made.sent(1)
    assert (record.key(), record.value()) == (b"key", b"request")
    assert record.headers() == [("reply-partition", b"%d" % made.partition), ("traceparent", b"00")]
    assert made.failed == []


def test_rdkafka_connection_request_over_a_limit_is_refused(topics: Callable[..., Topics]) -> None:
    """Over the client's own limit, and over the topic's, which only the broker knows."""
    made = topics(settings={"max.message.bytes": "10000"})
    made.send(bytes(20_000_000))
    assert isinstance(made.failed.pop(), RequestTooLarge)
    made.send(bytes(100_000))
    assert isinstance(made.await_failure(), RequestTooLarge)
    made.send(b"small")
    assert [record.value() for record in made.sent(1)] == [b"small"]


def test_rdkafka_connection_without_topic_or_broker_says_so(broker: KafkaBroker) -> None:
    with pytest.raises(TopicMissing, match="no topic 'nowhere'"):
        connection_for_job(config_of(broker.bootstrap_servers, "nowhere", "elsewhere"))
    with pytest.raises(BrokerUnreachable, match=r"no Kafka broker at 127\.0\.0\.1:1"):
        connection_for_job(config_of("127.0.0.1:1", "a", "b"))


def test_job_connection_with_options_of_kafka_python_uses_that(broker: KafkaBroker) -> None:
    topic = f"both-{uuid.uuid4().hex[:8]}"
    broker.create_topics(Topic(topic, 1), Topic(f"{topic}-2", 1))
    connection = connection_for_job(
        config_of(broker.bootstrap_servers, topic, f"{topic}-2", **{"retry.backoff.ms": 50})
    )
    try:
        assert isinstance(connection, KafkaConnection)
    finally:
        connection.close_sender()
        connection.close_receiver()


def test_rdkafka_connection_outlives_a_broker_that_is_away(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path / "kafka", log_dir=tmp_path / "logs")
    broker.start()
    try:
        made = Topics(broker)
        broker.stop()
        made.send(b"meanwhile")
        assert list(made.connection.receive(1000)) == []
        broker.start()
        assert [record.value() for record in made.sent(1)] == [b"meanwhile"]
        made.write(b"answer", made.partition)
        assert made.read(1) == [(b"k", b"answer")]
        made.close()
    finally:
        broker.stop()


def test_rdkafka_connection_uses_new_partitions(topics: Callable[..., Topics]) -> None:
    made = topics()
    admin = AdminClient({"bootstrap.servers": made.servers})
    admin.create_partitions([NewPartitions(made.requests, 3)])[made.requests].result(30)
    end_s = time.monotonic() + 60
    while True:
        made.send(b"request")
        list(made.connection.receive(10))
        consumer = Consumer({"bootstrap.servers": made.servers, "group.id": "look"})
        ends = [consumer.get_watermark_offsets(TopicPartition(made.requests, each), 10)[1] for each in range(3)]
        consumer.close()
        if all(ends):
            break
        assert time.monotonic() < end_s, ends
    assert not made.failed
