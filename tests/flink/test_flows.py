"""Flows in a job: JSON events through a kill, each exactly once, with all that they had.

payments  --> [ double ]            --> scored      in order of keys
clicks    --> [ ensemble `strict` ] --> rated       failed ones go on with a code
orders    --> [ double ]            --> doubled     in Avro, by one schema and then by a newer one
requests  --> [ double ]            --> responses
"""

import io
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import onnxruntime
import orjson
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.core.malformed_events import MALFORMED
from tests.flink.conftest import FIRST_THREAD
from tests.flink.service import PARTITIONS, Topics, await_checkpoint
from tests.schema_registry import RegistryServer

EVENTS = 3000
KEYS = 40
#: Kafka deletes older records within minutes.
BASE_MS = time.time_ns() // 1_000_000
HEADERS: list[tuple[str, str | bytes | None]] = [
    ("trace", b"\x00\xff"),
    ("empty", b""),
    ("none", None),
    ("trace", b"second"),
]


def payment(number: int) -> bytes:
    """An event whose formatting any parser would change."""
    return (
        f'{{"n": {number}, "amount": {number}.50, "user": {{"age": {number % 90}, "näme": "J\\u00fcrgen \u20ac"}}, '
        f'"big": 12345678901234567890123, "e": 1E5, "limits": [{number % 7}, 1e2], "twice": 1, "twice": 2, '
        f'"fraud": {{"old": true}} }}\n'
    ).encode()


def features(number: int) -> list[float]:
    return [number + 0.5, number % 90, number % 7, 100.0]


def click(number: int) -> bytes:
    return json.dumps({"n": number, "item": number % 10}).encode()


SHOP = {"type": "record", "name": "Shop", "fields": [{"name": "id", "type": "long"}]}
FIELDS = [{"name": "n", "type": "long"}, {"name": "shop", "type": ["null", SHOP]}]
#: The newer one has another field before the others.
ORDERS = [
    json.dumps({"type": "record", "name": "Order", "fields": fields})
    for fields in (FIELDS, [{"name": "note", "type": "string", "default": ""}, *FIELDS])
]


def order(number: int) -> bytes:
    newer = number >= EVENTS // 2
    event = {"note": f"n{number}", "n": number, "shop": {"id": number % 9}}
    record = io.BytesIO()
    fastavro.schemaless_writer(record, json.loads(ORDERS[newer]), event)
    return b"\0\0\0\0%c" % (1 + newer) + record.getvalue()


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        for text in ORDERS:
            server.add(text)
        yield server


@pytest.fixture
def topics(
    broker: KafkaBroker,
    model_repository: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    registry: RegistryServer,
) -> Any:
    run = uuid.uuid4().hex[:8]
    flows = (
        FlowTable(
            source=f"payments-{run}",
            to=f"scored-{run}",
            model="double",
            inputs={"x": ["amount", "user.age", "limits[0]", {"path": "limits[1]", "default": 0.0}]},
            outputs={"fraud.score": "y[1]", "fraud.all": "y"},
            order="key",
        ),
        FlowTable(
            source=f"clicks-{run}",
            to=f"rated-{run}",
            model="strict",
            inputs={"i": "item"},
            outputs={"rating": "y"},
            key="item",
            on_error="pass",
        ),
        FlowTable(
            source=f"orders-{run}",
            to=f"doubled-{run}",
            model="double",
            format="avro",
            inputs={"x": ["n", "shop.id", "n", "shop.id"]},
            outputs={"double.id": "y[1]"},
            key="n",
        ),
    )
    config = Config(flow=flows).replace(
        job={
            "name": f"flows-{run}",
            "execution_mode": request.param,
            "delivery": "exactly-once",
            "parallelism": 2,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (tmp_path / "checkpoints").as_uri(),
        },
        models={"repository": str(model_repository)},
        registry={"url": registry.url},
    )
    names = [name for flow in flows for name in (flow.source, flow.to)]
    broker.create_topics(*(Topic(name, PARTITIONS) for name in names))
    made = Topics(broker, config, run)
    yield made
    made.close()


def read(topics: Topics, name: str, count: int, timeout_s: float = 200) -> list[Message]:
    """Returns all committed records of a topic, once there are that many, by partition and offset."""
    settings = {"bootstrap.servers": topics.config.kafka.bootstrap_servers, "group.id": uuid.uuid4().hex}
    consumer = Consumer({**settings, "isolation.level": "read_committed", "enable.auto.commit": False})
    consumer.assign([TopicPartition(name, number, 0) for number in range(PARTITIONS)])
    found: list[Message] = []
    end, quiet = time.monotonic() + timeout_s, 0
    while len(found) < count or quiet < 3:
        messages = consumer.consume(1000, 1.0)
        quiet = 0 if messages else quiet + 1
        found += messages
        assert len(found) >= count or time.monotonic() < end, f"{len(found)} of {count} records in {name}"
    consumer.close()
    assert all(message.error() is None for message in found)
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


@pytest.mark.recovery
@pytest.mark.timeout(600)
@pytest.mark.parametrize("topics", FIRST_THREAD, indirect=True)
def test_flows_through_a_kill_give_each_event_once(
    topics: Topics, model_repository: Path, tmp_path: Path, registry: RegistryServer
) -> None:
    payments, clicks, orders = topics.config.flow
    producer = Producer({"bootstrap.servers": topics.config.kafka.bootstrap_servers, "linger.ms": 5})
    bad = iter(MALFORMED.items())
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        running = job.start(topics.config, cluster.url)
        x = np.ones((1, 4), np.float32)
        [answer] = topics.ask(InferRequest("double", (Tensor.from_array("x", x),), "warm-up"), timeout_s=120)
        assert isinstance(answer, InferResponse)
        [victim, _] = cluster.task_managers
        for number in range(EVENTS):
            key, sent_ms = f"user-{number % KEYS}", BASE_MS + number
            producer.produce(payments.source, payment(number), key, headers=HEADERS, timestamp=sent_ms)
            if number % 10 == 0:
                producer.produce(clicks.source, click(number), None, timestamp=sent_ms)
                producer.produce(orders.source, order(number), None, timestamp=sent_ms)
            if number % 70 == 0 and (fault := next(bad, None)):
                producer.produce(payments.source, fault[1], fault[0], headers=[("fault", fault[0].encode())])
            if number == EVENTS // 2:
                producer.flush()
                await_checkpoint(cluster, running.job_id)
                cluster.kill_task_manager(victim)
                cluster.add_task_manager()
            producer.poll(0)
        producer.produce(payments.source, None, "tombstone")
        producer.flush()
        assert next(bad, None) is None
        scored = read(topics, payments.to, EVENTS)
        rated = read(topics, clicks.to, EVENTS // 10)
        doubled = read(topics, orders.to, EVENTS // 10)
        errors_topic = topics.config.kafka.errors_topic
        letters = [decode_dead_letter(message.value() or b"") for message in read(topics, errors_topic, 1)]
        restored = cluster.rest.get(f"/jobs/{running.job_id}/checkpoints")["counts"]["restored"]
        assert restored >= 1, "the job was not restored, so the kill hit nothing"
        assert running.status() == "RUNNING"
        running.cancel()
    check_scored(scored, model_repository)
    check_rated(rated)
    check_doubled(doubled, registry)
    check_letters(letters, payments.source)


def check_scored(scored: list[Message], repository: Path) -> None:
    session = onnxruntime.InferenceSession(repository / "double" / "2" / "model.onnx")
    [expected] = session.run(["y"], {"x": np.array([features(number) for number in range(EVENTS)], np.float32)})
    order: dict[bytes | None, list[int]] = defaultdict(list)
    for message in scored:
        number = message.timestamp()[1] - BASE_MS
        row = orjson.dumps(expected[number], option=orjson.OPT_SERIALIZE_NUMPY)
        score = orjson.dumps(expected[number][1:2], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        new = b'{"old": true,"score":' + score + b',"all":' + row + b"}"
        assert message.value() == payment(number).replace(b'{"old": true}', new)
        assert message.key() == f"user-{number % KEYS}".encode()
        assert message.headers() == HEADERS
        order[message.key()].append(number)
    numbers = sorted(number for of_a_key in order.values() for number in of_a_key)
    assert numbers == list(range(EVENTS))
    assert all(of_a_key == sorted(of_a_key) for of_a_key in order.values())


def check_rated(rated: list[Message]) -> None:
    """`lookup` knows the items 0 to 7; the ensemble answers the larger of 10 i and its entry."""
    seen: Counter[int] = Counter()
    for message in rated:
        number = message.timestamp()[1] - BASE_MS
        item = number % 10
        tail = b',"rating":%d.0}' % (10 * item) if item < 8 else b',"inference_error":"inference_failed"}'
        assert message.value() == click(number)[:-1] + tail
        assert message.key() == b"%d" % item
        seen[number] += 1
    assert seen == Counter(range(0, EVENTS, 10))


def check_doubled(doubled: list[Message], registry: RegistryServer) -> None:
    found = []
    for message in doubled:
        value = message.value() or b""
        event = fastavro.schemaless_reader(io.BytesIO(value[5:]), json.loads(registry.schemas[value[4] - 1]), None)
        assert isinstance(event, dict)
        number = event["n"]
        assert event["double"] == {"id": 2.0 * (number % 9) + 2}
        assert event.get("note") == (f"n{number}" if number >= EVENTS // 2 else None)
        assert value[5:].startswith(order(number)[5:])
        assert (message.key(), message.timestamp()[1]) == (b"%d" % number, BASE_MS + number)
        found.append(number)
    assert sorted(found) == list(range(0, EVENTS, 10))
    assert len(registry.schemas) == 4


def check_letters(letters: list[DeadLetter], topic: str) -> None:
    # Neither the tombstone nor the empty event has an original.
    expected = Counter[bytes | None]([None, *[event or None for event in MALFORMED.values()]])
    assert Counter(letter.original for letter in letters) == expected
    assert {letter.source.topic for letter in letters} == {topic}
    assert {letter.code for letter in letters} <= {"unreadable", "invalid_field", "missing_field"}
    assert all(letter.source.partition < PARTITIONS for letter in letters)
