"""Headers come back with answers and dead letters, and answers go to the address that a request names."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from anabranch import Client
from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.messaging.connection import KafkaConnection
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.flink.service import PARTITIONS, Topics

TRACE = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
CORRELATION = ("kafka_correlationId", b"\x00\xff")
JOBS = (("thread", "at-least-once"), ("process", "exactly-once"))


class Asker:
    """Sends records with headers, and reads all topics of answers and dead letters."""

    def __init__(self, topics: Topics, replies: str) -> None:
        self.kafka, self.replies = topics.config.kafka, replies
        self._producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "isolation.level": "read_committed",
            }
        )
        names = (self.kafka.responses_topic, self.kafka.errors_topic, replies)
        self._consumer.assign([TopicPartition(name, number, 0) for name in names for number in range(PARTITIONS)])
        self.seen: list[Message] = []

    def ask(self, value: bytes, *headers: tuple[str, bytes]) -> None:
        self._producer.produce(self.kafka.requests_topic, value, headers=list(headers))
        self._producer.flush()

    def answer(self, key: str, topic: str | None = None) -> Message:
        """Returns the first record of a key in a topic; by default in the responses topic."""
        wanted = topic or self.kafka.responses_topic
        return self.wait_for(lambda each: each.topic() == wanted and each.key() == key.encode())

    def wait_for(self, is_it: Callable[[Message], bool]) -> Message:
        end = time.monotonic() + 60
        while not any(map(is_it, self.seen)):
            assert time.monotonic() < end, [(each.topic(), each.key(), each.headers()) for each in self.seen]
            self.seen += [each for each in self._consumer.consume(100, timeout=0.1) if each.error() is None]
        return next(filter(is_it, self.seen))

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture(scope="module", params=JOBS, ids="-".join)
def asker(
    request: pytest.FixtureRequest,
    broker: KafkaBroker,
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Asker]:
    mode, delivery = request.param
    replies = f"replies-{uuid.uuid4().hex[:8]}"
    broker.create_topics(Topic(replies, PARTITIONS))
    config = Config().replace(
        job={
            "execution_mode": mode,
            "delivery": delivery,
            "checkpoint_interval_ms": 500,
            "checkpoint_dir": tmp_path_factory.mktemp("state").as_uri(),
        },
        kafka={"reply_topics": ("replies-*",)},
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    asker = Asker(topics, replies)
    yield asker
    assert running.status() == "RUNNING"
    running.cancel()
    asker.close()
    topics.close()


def message(name: str, rows: int = 1, width: int = 4, encoding: Encoding = Encoding.PROTOBUF) -> bytes:
    ones = Tensor.from_array("x", np.ones((rows, width), np.float32))
    return codec.encode_request(InferRequest("double", (ones,), name, encoding=encoding))


def read(answer: Message) -> InferResponse | ErrorResponse:
    return codec.decode_response(answer.value() or b"")


def name_of(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


@pytest.mark.parametrize("rows", [1, 300])
def test_answer_of_request_with_headers_repeats_them(asker: Asker, rows: int) -> None:
    name = name_of("headers")
    asker.ask(message(name, rows), TRACE, ("other", b"dropped"), CORRELATION)
    answer = asker.answer(name)
    assert isinstance(read(answer), InferResponse)
    assert answer.headers() == [TRACE, CORRELATION]


def test_dead_letter_of_request_with_headers_repeats_them(asker: Asker) -> None:
    name = name_of("bad")
    asker.ask(message(name, width=5), ("reply-partition", b"2"), CORRELATION)
    answer, letter = asker.answer(name), asker.answer(name, asker.kafka.errors_topic)
    assert isinstance(read(answer), ErrorResponse)
    assert answer.partition() == 2
    assert answer.headers() == letter.headers() == [CORRELATION]


def test_answer_of_request_without_headers_has_none(asker: Asker) -> None:
    name = name_of("plain")
    asker.ask(message(name))
    assert asker.answer(name).headers() is None


@pytest.mark.parametrize("rows", [1, 300])
def test_answer_goes_to_the_partition_that_a_request_names(asker: Asker, rows: int) -> None:
    names = {name_of("partition"): number for number in range(PARTITIONS)}
    for name, number in names.items():
        asker.ask(message(name, rows), ("reply-partition", b"%d" % number))
    assert {name: asker.answer(name).partition() for name in names} == names


def test_answer_goes_to_the_topic_that_a_request_names(asker: Asker) -> None:
    by_name, as_spring = name_of("topic"), name_of("spring")
    asker.ask(message(by_name), ("reply-topic", asker.replies.encode()))
    spring = (("kafka_replyTopic", asker.replies.encode()), ("kafka_replyPartition", b"\0\0\0\3"), CORRELATION)
    asker.ask(message(as_spring), *spring)
    assert asker.answer(by_name, asker.replies).headers() is None
    answer = asker.answer(as_spring, asker.replies)
    assert (answer.partition(), answer.headers()) == (3, [CORRELATION])


@pytest.mark.parametrize(
    "address",
    [(("reply-topic", b"replies-missing"),), (("reply-partition", b"999"),), (("reply-topic", b"replies-\xff"),)],
    ids=["topic", "partition", "name"],
)
def test_answer_to_a_missing_address_goes_to_the_responses_topic(
    asker: Asker, address: tuple[tuple[str, bytes], ...]
) -> None:
    name = name_of("missing")
    asker.ask(message(name), *address)
    assert isinstance(read(asker.answer(name)), InferResponse)


@pytest.mark.parametrize("address", [("reply-topic", b"secret"), ("reply-partition", b"-1"), ("reply-partition", b"x")])
def test_request_with_a_refused_address_gets_the_error(asker: Asker, address: tuple[str, bytes]) -> None:
    name = name_of("refused")
    asker.ask(message(name), address, CORRELATION)
    answer = asker.answer(name)
    error = read(answer)
    assert isinstance(error, ErrorResponse)
    assert error.code == "reply_refused"
    assert answer.headers() == [CORRELATION]


def test_unreadable_request_with_headers_is_answered(asker: Asker) -> None:
    mark = ("correlation-id", uuid.uuid4().bytes)
    asker.ask(b'{"inputs": [', mark, ("reply-topic", asker.replies.encode()))
    answer = asker.wait_for(lambda each: each.topic() == asker.replies and each.headers() == [mark])
    error = read(answer)
    assert isinstance(error, ErrorResponse)
    assert (error.code, error.id.encode()) == ("unreadable", answer.key())


def test_json_request_without_id_gets_its_place_as_id(asker: Asker) -> None:
    mark = ("correlation-id", uuid.uuid4().bytes)
    asker.ask(message("", encoding=Encoding.JSON), mark)
    answer = asker.wait_for(lambda each: each.topic() == asker.kafka.responses_topic and each.headers() == [mark])
    assert read(answer).id.encode() == answer.key() != b""


def test_client_with_its_own_partition_reads_its_answers(asker: Asker) -> None:
    kafka = asker.kafka
    connection = KafkaConnection(
        kafka.bootstrap_servers,
        requests_topic=kafka.requests_topic,
        responses_topic=kafka.responses_topic,
        max_message_bytes=kafka.max_message_bytes,
        isolation_level="read_committed",
        properties={},
        own_partition=True,
    )
    with Client(connection=connection, timeout_s=60) as client:
        for rows in (1, 300, 1):
            result = client.infer("double", np.ones((rows, 4), np.float32))
            assert result["y"].shape == (rows, 4)
            record = asker.answer(result.id)
            assert (record.partition(), record.headers()) == (connection.partition, None)


def test_headers_of_megabytes_do_not_harm_the_job(asker: Asker) -> None:
    name = name_of("large")
    asker.ask(message(name), ("traceparent", b"x" * 900_000), CORRELATION)
    assert asker.answer(name).headers() == [CORRELATION]
