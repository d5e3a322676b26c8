"""Sends requests to a running job, and reads its answers and dead letters."""

import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from anabranch.flink_job.config import Config
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic

PARTITIONS = 4
#: The largest record that a test sends.
RECORD_LIMIT_BYTES = 20 * 1024 * 1024


def durable(name: str, mode: str, folder: Path, repository: Path, **job: Any) -> Config:
    """The configuration of a job of two tasks that keeps its checkpoints, one each second, in a folder."""
    kept = {"parallelism": 2, "checkpoint_interval_ms": 1000, "checkpoint_dir": (folder / "checkpoints").as_uri()}
    return Config().replace(
        job={"name": f"{name}-{mode}", "execution_mode": mode, **kept, **job}, models={"repository": str(repository)}
    )


def write_kafka_table(config: Config, path: Path) -> Path:
    """Writes the address and the topics of a job as the configuration of its clients."""
    names = ("bootstrap_servers", "requests_topic", "responses_topic", "errors_topic", "models_topic")
    path.write_text("[kafka]\n" + "".join(f'{name} = "{getattr(config.kafka, name)}"\n' for name in names))
    return path


class Topics:
    """The three topics of one job, with producer and consumers.

    Args:
        limits: Record limits in bytes of responses and errors topic; by default those of the job.
    """

    def __init__(
        self, broker: KafkaBroker, config: Config, run: str | None = None, limits: tuple[int, int] | None = None
    ) -> None:
        run = run or uuid.uuid4().hex[:8]
        self.config = config.replace(
            kafka={
                "bootstrap_servers": broker.bootstrap_servers,
                "requests_topic": f"requests-{run}",
                "responses_topic": f"responses-{run}",
                "errors_topic": f"errors-{run}",
                "group_id": f"group-{run}",
            }
        )
        kafka = self.config.kafka
        # Requests may be larger than the job's limit, as those to the topic of another producer.
        responses, errors = limits or (kafka.record_limit_bytes, kafka.letter_limit_bytes)
        sizes = {kafka.requests_topic: RECORD_LIMIT_BYTES, kafka.responses_topic: responses, kafka.errors_topic: errors}
        broker.create_topics(
            *(Topic(name, PARTITIONS, {"max.message.bytes": str(size)}) for name, size in sizes.items())
        )
        self._producer = KafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers, linger_ms=0, max_request_size=RECORD_LIMIT_BYTES
        )
        self._answers = _consumer(kafka.bootstrap_servers, kafka.responses_topic)
        self._letters = _consumer(kafka.bootstrap_servers, kafka.errors_topic)
        self.answers: dict[str, list[InferResponse | ErrorResponse]] = {}
        self.letters: list[DeadLetter] = []

    def send(self, *values: bytes | None, partition: int | None = None) -> None:
        """Sends records to all partitions or to one, and waits until the broker has them."""
        kafka = self.config.kafka
        for number, value in enumerate(values):
            self._producer.send(kafka.requests_topic, key=b"%d" % number, value=value, partition=partition)
        self._producer.flush()

    def ask(self, *requests: InferRequest, timeout_s: float = 110) -> list[InferResponse | ErrorResponse]:
        """Sends requests; returns the first answer to each, in order."""
        self.send(*(codec.encode_request(request) for request in requests))
        answers = self.await_answers((request.id for request in requests), timeout_s)
        return [answers[request.id] for request in requests]

    def await_answers(self, ids: Iterable[str], timeout_s: float = 110) -> Mapping[str, InferResponse | ErrorResponse]:
        """Returns the first answer to each id."""
        wanted, end = set(ids), time.monotonic() + timeout_s
        while not wanted <= self.answers.keys():
            assert time.monotonic() < end, f"no answer to {sorted(wanted - self.answers.keys())[:5]}"
            self.read_answers()
        return {name: self.answers[name][0] for name in wanted}

    def await_letters(self, count: int, timeout_s: float = 90) -> list[DeadLetter]:
        """Returns all dead letters, once there are that many."""
        end = time.monotonic() + timeout_s
        while len(self.letters) < count:
            assert time.monotonic() < end, f"{len(self.letters)} of {count} dead letters: {self.letters}"
            for records in self._letters.poll(timeout_ms=100).values():
                self.letters += [decode_dead_letter(record.value) for record in records]
        return self.letters

    def read_answers(self, timeout_ms: int = 100) -> int:
        """Reads the answers that have arrived; returns their number."""
        count = 0
        for records in self._answers.poll(timeout_ms=timeout_ms).values():
            for record in records:
                answer = codec.decode_response(record.value)
                assert record.key == answer.id.encode()
                self.answers.setdefault(answer.id, []).append(answer)
                count += 1
        return count

    def check_repeated(self, delivery: str) -> None:
        """Reads the remaining answers: exactly-once gives no second one, and at-least-once none that differs."""
        while self.read_answers(timeout_ms=3000):
            pass
        repeated = [name for name, seen in self.answers.items() if len(seen) > 1]
        if delivery == "exactly-once":
            assert not repeated
        for name in repeated:
            assert all(answer == self.answers[name][0] for answer in self.answers[name])

    def close(self) -> None:
        """Closes the connections."""
        self._producer.close()
        self._answers.close()
        self._letters.close()


def _consumer(bootstrap_servers: str, topic: str) -> Any:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        isolation_level="read_committed",
        max_partition_fetch_bytes=2 * RECORD_LIMIT_BYTES,
        fetch_max_bytes=4 * RECORD_LIMIT_BYTES,
        fetch_max_wait_ms=20,
    )
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    return consumer


def await_checkpoint(cluster: FlinkCluster, job_id: str) -> None:
    """Waits for a checkpoint that starts after this call."""
    completed = cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["completed"]
    end = time.monotonic() + 180
    while cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["completed"] < completed + 2:
        assert time.monotonic() < end, "no checkpoint is completed"
        time.sleep(0.1)
