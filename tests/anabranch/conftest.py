"""A job made of one thread, so that the client can be tested without Flink."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import kafka
import pytest
from kafka.admin import KafkaAdminClient, NewTopic

from anabranch.schemas import codec
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse

Answer = InferResponse | ErrorResponse
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


def echo(request: InferRequest) -> Sequence[Answer]:
    return [InferResponse(request.model_name, request.model_version or "1", request.id, request.inputs)]


@dataclass
class FakeJob:
    """Answers every request with what `answer` makes of it; keeps what it saw."""

    bootstrap_servers: str
    requests_topic: str
    responses_topic: str
    answer: Callable[[InferRequest], Sequence[Answer]] = echo
    records: list[Any] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _ready: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def requests(self) -> list[InferRequest]:
        return [codec.decode_request(record.value) for record in self.records]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap_servers, "metrics_enabled": False}
        consumer = kafka.KafkaConsumer(**options, group_id=None, max_partition_fetch_bytes=MAX_MESSAGE_BYTES + 65_536)
        partitions = [
            kafka.TopicPartition(self.requests_topic, number)
            for number in consumer.partitions_for_topic(self.requests_topic)
        ]
        consumer.assign(partitions)
        for partition, offset in consumer.end_offsets(partitions).items():
            consumer.seek(partition, offset)
        producer = kafka.KafkaProducer(**options, max_request_size=MAX_MESSAGE_BYTES + 65_536)
        producer.partitions_for(self.responses_topic)
        self._ready.set()
        while not self._stop.is_set():
            for records in consumer.poll(timeout_ms=50).values():
                for record in records:
                    self.records.append(record)
                    request = codec.decode_request(record.value)
                    for answer in self.answer(request):
                        message = codec.encode_response(answer, request.encoding)
                        producer.send(self.responses_topic, message, key=answer.id.encode())
        consumer.close()
        producer.close(timeout=5)


@pytest.fixture(scope="module")
def topics(broker: Any) -> tuple[str, str]:
    """A requests and a responses topic of this test module's own."""
    suffix = uuid.uuid4().hex[:8]
    names = (f"requests-{suffix}", f"responses-{suffix}")
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    limits = {"max.message.bytes": str(MAX_MESSAGE_BYTES + 65_536)}
    admin.create_topics([NewTopic(name, 3, 1, topic_configs=limits) for name in names])
    admin.close()
    return names


@pytest.fixture
def job(broker: Any, topics: tuple[str, str]) -> Iterator[FakeJob]:
    fake = FakeJob(broker.bootstrap_servers, *topics)
    yield fake
    fake.close()
