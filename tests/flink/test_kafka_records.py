"""Any Kafka: codecs, aborted transactions and added partitions; transactions are few, and none is left open."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient
from kafka.admin import TransactionState

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.kafka.connectors import transaction_prefix
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from anabranch.stack.kafka.transactions import end_transactions
from anabranch.topics import fit_to_topics
from tests.flink.conftest import MODES
from tests.flink.service import Topics

SINKS = 4
TASKS = 2


def request(name: str) -> bytes:
    return codec.encode_request(InferRequest("double", (Tensor.from_array("x", np.ones((1, 4), np.float32)),), name))


def producer_of(topics: Topics, settings: dict[str, str | int] | None = None) -> Producer:
    return Producer({"bootstrap.servers": topics.config.kafka.bootstrap_servers} | (settings or {}))


@pytest.fixture
def admin(broker: KafkaBroker) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    yield admin
    admin.close()


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_job_compressed_requests_are_answered(service: Topics, compression: str) -> None:
    ids = [f"{compression}-{uuid.uuid4().hex}" for _ in range(10)]
    producer = producer_of(service, {"compression.type": compression, "linger.ms": 200})
    for name in ids:
        producer.produce(service.config.kafka.requests_topic, request(name), key="same")
    producer.flush()
    assert all(isinstance(answer, InferResponse) for answer in service.await_answers(ids).values())


def test_job_requests_of_aborted_transactions_are_not_served(service: Topics) -> None:
    aborted, committed = (f"{kind}-{uuid.uuid4().hex}" for kind in ("aborted", "committed"))
    producer = producer_of(service, {"transactional.id": uuid.uuid4().hex})
    producer.init_transactions(20)
    for name, end in ((aborted, producer.abort_transaction), (committed, producer.commit_transaction)):
        producer.begin_transaction()
        # One partition: the committed request is read after the aborted one.
        producer.produce(service.config.kafka.requests_topic, request(name), partition=0)
        producer.flush()
        end()
    service.await_answers([committed])
    while service.read_answers(timeout_ms=1000):
        pass
    assert aborted not in service.answers


def test_job_added_partitions_are_read(service: Topics, admin: KafkaAdminClient) -> None:
    topic = service.config.kafka.requests_topic
    count = len(admin.describe_topics([topic])[0]["partitions"])
    admin.create_partitions({topic: count + 2})
    producer = producer_of(service)
    ids = {f"partition-{number}-{uuid.uuid4().hex}": number for number in (count, count + 1)}
    for name, number in ids.items():
        producer.produce(topic, request(name), partition=number)
    producer.flush()
    # Flink's own default is five minutes.
    service.await_answers(ids, timeout_s=60)


@pytest.mark.recovery
@pytest.mark.parametrize("mode", MODES)
def test_exactly_once_job_reuses_its_transactional_ids(
    broker: KafkaBroker, model_repository: Path, admin: KafkaAdminClient, tmp_path: Path, mode: str
) -> None:
    config = Config().replace(
        job={
            "execution_mode": mode,
            "parallelism": TASKS,
            "delivery": "exactly-once",
            "checkpoint_interval_ms": 300,
            "checkpoint_dir": tmp_path.as_uri(),
        },
        models={"repository": str(model_repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    try:
        for number in range(20):
            (answer,) = topics.ask(
                InferRequest("double", (Tensor.from_array("x", np.ones((1, 4), np.float32)),), f"{number}")
            )
            assert isinstance(answer, InferResponse)
        ids = transactional_ids(admin, transaction_prefix(topics.config))
        # One is written to, one waits for its checkpoint, and one may be just committed.
        assert 0 < len(ids) <= SINKS * TASKS * 3
    finally:
        running.cancel()
        topics.close()


def both(rows: int) -> tuple[Tensor, Tensor]:
    return (
        Tensor.from_array("a", np.ones((rows, 3), np.float32)),
        Tensor.from_array("b", np.ones((rows, 3), np.float32)),
    )


@pytest.mark.parametrize("mode", MODES)
def test_job_what_a_topic_would_refuse_becomes_an_answer(
    broker: KafkaBroker, model_repository: Path, mode: str
) -> None:
    config = Config().replace(job={"execution_mode": mode}, models={"repository": str(model_repository)})
    topics = Topics(broker, config, limits=(131_072, 140_000))
    running = job.start(fit_to_topics(topics.config))
    try:
        large, wrong, good = topics.ask(
            InferRequest("pair", both(3_000), f"large-{mode}"),
            InferRequest("double", (Tensor.from_array("x", np.ones((9_000, 3), np.float32)),), f"wrong-{mode}"),
            InferRequest("double", (Tensor.from_array("x", np.ones((1, 4), np.float32)),), f"good-{mode}"),
        )
        assert isinstance(large, ErrorResponse)
        assert large.code == "response_too_large"
        assert isinstance(wrong, ErrorResponse)
        assert wrong.code == "wrong_shape"
        assert isinstance(good, InferResponse)
        letters = topics.await_letters(2)
        assert {letter.id: letter.original for letter in letters} == {f"large-{mode}": None, f"wrong-{mode}": None}
        assert running.status() == "RUNNING"
    finally:
        running.cancel()
        topics.close()


def transactional_ids(admin: KafkaAdminClient, prefix: str, *states: TransactionState) -> set[str]:
    listed = [each for found in admin.list_transactions().values() for each in found]
    ids = {each.transactional_id for each in listed if not states or each.state in states}
    return {name for name in ids if name.startswith(prefix)}


def test_transactions_left_open_are_ended_by_prefix(broker: KafkaBroker, admin: KafkaAdminClient) -> None:
    topic = f"left-{uuid.uuid4().hex[:8]}"
    broker.create_topics(Topic(topic))
    producers = [
        Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": f"{topic}.{name}"})
        for name in ("mine.a", "mine.b", "other")
    ]
    for producer in producers:
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce(topic, b"open")
        producer.flush()
    assert end_transactions(broker.bootstrap_servers, f"{topic}.mine.") == [f"{topic}.mine.a", f"{topic}.mine.b"]
    end = time.monotonic() + 20
    while transactional_ids(admin, topic, TransactionState.ONGOING) != {f"{topic}.other"}:
        assert time.monotonic() < end
        time.sleep(0.1)
    producers[-1].abort_transaction()
    assert end_transactions(broker.bootstrap_servers, f"{topic}.") == []
