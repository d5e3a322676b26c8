from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer

from anabranch.schemas.limits import DEFAULT_MESSAGE_BYTES
from anabranch.stack.errors import PortInUse, StackError, TopicNotMade
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic, record_counts


def send(broker: KafkaBroker, topic: str, value: bytes) -> None:
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, max_request_size=2 * DEFAULT_MESSAGE_BYTES, acks="all"
    )
    try:
        producer.send(topic, value, key=b"k" * 100).get(30)
    finally:
        producer.close()


def receive(broker: KafkaBroker, topic: str) -> bytes:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest", consumer_timeout_ms=30_000
    )
    try:
        return bytes(next(iter(consumer)).value)
    finally:
        consumer.close()


def listening_addresses(pid: int) -> set[str]:
    sockets = psutil.Process(pid).net_connections(kind="inet")
    return {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_broker_value_of_16_mib_is_delivered(broker: KafkaBroker) -> None:
    broker.create_topics(Topic("large"))
    value = b"x" * DEFAULT_MESSAGE_BYTES
    send(broker, "large", value)
    assert receive(broker, "large") == value


def test_create_topics_existing_topic_is_kept(broker: KafkaBroker) -> None:
    made = broker.create_topics(Topic("made-a", partitions=3), Topic("made-b", settings={"retention.ms": "60000"}))
    assert made == ["made-a", "made-b"]
    assert broker.create_topics(Topic("made-a", partitions=3)) == []
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    assert consumer.partitions_for_topic("made-a") == {0, 1, 2}
    consumer.close()


def test_record_counts_of_topics_sum_their_partitions(broker: KafkaBroker) -> None:
    broker.create_topics(Topic("counted", partitions=3), Topic("empty"))
    for _ in range(4):
        send(broker, "counted", b"x")
    assert record_counts(broker.bootstrap_servers, ["counted", "empty"]) == {"counted": 4, "empty": 0}
    with pytest.raises(StackError, match="no Kafka broker answers"):
        record_counts("127.0.0.1:1", ["counted"])


def test_create_topics_bad_name_is_refused(broker: KafkaBroker) -> None:
    with pytest.raises(TopicNotMade, match="not a topic"):
        broker.create_topics(Topic("not a topic"))


def test_broker_process_listens_on_loopback_only(broker: KafkaBroker) -> None:
    assert listening_addresses(broker.process.pid) == {"127.0.0.1"}


def test_broker_taken_port_starts_nothing(broker: KafkaBroker, tmp_path: Path) -> None:
    port = int(broker.bootstrap_servers.rsplit(":", 1)[1])
    second = KafkaBroker(tmp_path, port)
    with pytest.raises(PortInUse, match="--kafka-port"):
        second.start()
    with pytest.raises(StackError, match="was not started"):
        _ = second.process


@pytest.mark.recovery
def test_broker_killed_and_started_keeps_its_records(tmp_path: Path) -> None:
    with KafkaBroker(tmp_path) as broker:
        address = broker.bootstrap_servers
        broker.create_topics(Topic("kept"))
        send(broker, "kept", b"precious")
        broker.kill()
        broker.start()
        assert broker.bootstrap_servers == address
        assert receive(broker, "kept") == b"precious"
