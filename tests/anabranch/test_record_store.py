"""Records of a real broker by offset, and dead letters over them."""

import uuid

import pytest
from kafka import KafkaProducer

from anabranch.dead_letters import LetterFilter, open_letters
from anabranch.flink_job.config import Config
from anabranch.messaging.errors import BrokerUnreachable, LetterMissing
from anabranch.messaging.record_store import KafkaRecords
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.wire.dead_letters import encode_dead_letter
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic


@pytest.fixture
def config(broker: KafkaBroker) -> Config:
    suffix = uuid.uuid4().hex[:8]
    names = {f"{kind}_topic": f"{kind}-{suffix}" for kind in ("requests", "responses", "errors")}
    broker.create_topics(*(Topic(name, 2) for name in names.values()))
    return Config().replace(kafka={"bootstrap_servers": broker.bootstrap_servers, **names})


def test_letters_of_a_broker_are_listed_and_replayed(config: Config) -> None:
    kafka = config.kafka
    store = KafkaRecords(kafka.bootstrap_servers, {}, max_record_bytes=1 << 20)
    headers = (("reply-partition", b"1"), ("empty", None))
    for number in range(300):
        value = b"request %d" % number
        store.append(kafka.requests_topic, b"k", value, headers)
        [partition] = [each for each, (_, end) in store.ranges(kafka.requests_topic).items() if end]
        code = "overloaded" if number % 100 else "unknown_model"
        failure = Failure(code, "why", "queue", "m", "1")
        letter = encode_dead_letter(kafka.requests_topic, Source(partition, number, 0), str(number), failure, value)
        store.append(kafka.errors_topic, b"%d" % number, letter, ())
    with open_letters(config) as letters:
        assert len(letters.last(1000)) == 300
        found = letters.last(10, LetterFilter(codes=["unknown_model"]))
        assert sorted(each.request_id for each in found) == ["0", "100", "200"]
        assert letters.replay(found[0].id).is_whole
        with pytest.raises(LetterMissing):
            letters.find("0-100000")
    records = store.read(kafka.requests_topic, partition, 300, 400)
    assert [(each.key, each.headers) for each in records] == [(b"k", (("reply-partition", b"1"), ("empty", b"")))]
    assert records[0].value == b"request " + found[0].request_id.encode()
    assert store.ranges("no-such-topic") == {}
    store.close()


def test_letters_of_an_aborted_transaction_are_not_listed(config: Config) -> None:
    producer = KafkaProducer(bootstrap_servers=config.kafka.bootstrap_servers, transactional_id=uuid.uuid4().hex)
    producer.init_transactions()
    for name, end in (("kept", producer.commit_transaction), ("gone", producer.abort_transaction)):
        letter = encode_dead_letter("r", Source(0, 0, 0), name, Failure("overloaded", "why", "queue", "m", "1"), None)
        producer.begin_transaction()
        producer.send(config.kafka.errors_topic, letter, partition=0)
        end()
    producer.close()
    with open_letters(config) as letters:
        assert [each.request_id for each in letters.last(10)] == ["kept"]


@pytest.mark.slow
def test_record_store_without_a_broker_says_so() -> None:
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"):
        KafkaRecords("127.0.0.1:1", {}, max_record_bytes=1)
