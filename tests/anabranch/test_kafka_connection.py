"""The client's connection to a real broker: compressed answers, and partitions that are added."""

import time
import uuid
from collections.abc import Callable, Iterator

import kafka.codec
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from anabranch import Client, CodecMissing
from anabranch.messaging import kafka_codecs
from anabranch.messaging.connection import KafkaConnection
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic


class Answers:
    """A topic of answers, its connection, and a producer."""

    def __init__(self, broker: KafkaBroker, settings: dict[str, str], compression: str = "none") -> None:
        self.servers = broker.bootstrap_servers
        self.topic = f"answers-{uuid.uuid4().hex[:8]}"
        broker.create_topics(Topic(self.topic, 2, settings))
        self.own = self._connect(own_partition=True)
        self.connection = self._connect()
        self.compression = compression

    def _connect(self, *, own_partition: bool = False) -> KafkaConnection:
        return KafkaConnection(
            self.servers,
            requests_topic=self.topic,
            responses_topic=self.topic,
            max_message_bytes=1 << 20,
            isolation_level="read_committed",
            properties={},
            own_partition=own_partition,
        )

    def write(self, *values: bytes, partition: int = 0) -> None:
        # A producer of its own: an older one does not know new partitions.
        producer = Producer({"bootstrap.servers": self.servers, "compression.type": self.compression})
        for value in values:
            producer.produce(self.topic, value, key=b"k", partition=partition)
        producer.flush()

    def read(self, count: int, timeout_s: float = 30) -> list[bytes]:
        values: list[bytes] = []
        end = time.monotonic() + timeout_s
        while len(values) < count:
            assert time.monotonic() < end, values
            values += [value for _, value in self.connection.receive(100)]
        return values

    def close(self) -> None:
        for connection in (self.connection, self.own):
            connection.close_sender()
            connection.close_receiver()


@pytest.fixture
def answers(broker: KafkaBroker) -> Iterator[Callable[..., Answers]]:
    made: list[Answers] = []

    def make(settings: dict[str, str] | None = None, compression: str = "none") -> Answers:
        made.append(Answers(broker, settings or {}, compression))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_connection_compressed_answers_are_read(answers: Callable[..., Answers], compression: str) -> None:
    topic = answers({"compression.type": compression}, compression)
    values = [b"%d" % number * 100 for number in range(10)]
    topic.write(*values)
    assert topic.read(10) == values


def test_connection_answers_in_added_partitions_are_read(answers: Callable[..., Answers]) -> None:
    topic = answers()
    topic.write(b"before")
    assert topic.read(1) == [b"before"]
    admin = KafkaAdminClient(bootstrap_servers=topic.servers)
    admin.create_partitions({topic.topic: 4})
    admin.close()
    for partition in (0, 2, 3):
        topic.write(b"%d" % partition, partition=partition)
    assert sorted(topic.read(3)) == [b"0", b"2", b"3"]


def test_connection_answers_in_other_partitions_are_not_read(answers: Callable[..., Answers]) -> None:
    topic = answers()
    own = topic.own.partition or 0
    topic.write(b"other", partition=1 - own)
    topic.write(b"own", partition=own)
    assert sorted(topic.read(2)) == [b"other", b"own"]
    values: list[bytes] = []
    while not values:
        values += [value for _, value in topic.own.receive(1000)]
    assert values == [b"own"]


def test_connection_request_names_the_partition_of_its_answer(answers: Callable[..., Answers]) -> None:
    topic = answers()
    consumer = KafkaConsumer(bootstrap_servers=topic.servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic.topic, number) for number in range(2)])
    topic.own.send(b"request", b"k", lambda error: None)
    record = next(consumer)
    consumer.close()
    assert record.headers == [("reply-partition", str(topic.own.partition).encode())]


def test_client_without_a_codec_of_the_topic_names_the_package(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"packed-{uuid.uuid4().hex[:8]}"
    broker.create_topics(Topic(topic, 1, {"compression.type": "lz4"}))
    monkeypatch.setitem(kafka_codecs._IS_INSTALLED, "lz4", lambda: False)
    with pytest.raises(CodecMissing, match=r"compressed with lz4, .*pip install lz4, or anabranch\[compression\]"):
        Client(broker.bootstrap_servers, requests_topic=topic, responses_topic=topic)


def test_connection_unreadable_answer_names_the_package(
    answers: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = answers({}, "zstd")
    monkeypatch.setattr(kafka.codec, "has_zstd", lambda: False)
    topic.write(b"packed" * 100)
    with pytest.raises(CodecMissing, match=r"zstd.*pip install zstandard, or anabranch\[compression\]"):
        topic.read(1)
