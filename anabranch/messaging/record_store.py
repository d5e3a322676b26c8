"""Records of Kafka topics by offset, for readers that look back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from anabranch.messaging.errors import NotSent
from anabranch.messaging.kafka_options import connection_causes, options_of, unreachable

_CONNECT_MS = 5_000
_READ_S = 20.0
_IDLE_S = 2.0
_SEND_S = 20.0
_POLL_MS = 200

Headers = tuple[tuple[str, bytes | None], ...]


class StoredRecord(NamedTuple):
    """A record and its place; `key` and `value` may be null."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class RecordStore(Protocol):
    """Topics of one cluster."""

    def ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return first and next offset by partition; empty without the topic."""

    def read(self, topic: str, partition: int, start: int, stop: int) -> list[StoredRecord]:
        """Return the committed records from `start` to before `stop` that there are."""

    def append(self, topic: str, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Write a record, and wait until the broker has it."""


class KafkaRecords:
    """A `RecordStore` over Kafka, for one thread. Close it.

    Args:
        max_record_bytes: Largest record to write.
        options: Of kafka-python.

    Raises:
        BrokerUnreachable: No broker answers.
    """

    def __init__(self, bootstrap_servers: str, options: Mapping[str, Any], *, max_record_bytes: int) -> None:
        import kafka  # noqa: PLC0415 - a third of a second
        import kafka.errors  # noqa: PLC0415 - the same

        self._kafka = kafka
        self._max_record_bytes = max_record_bytes
        self._options = options
        self._producer: Any = None
        self._common = {
            "bootstrap_servers": bootstrap_servers.split(","),
            "bootstrap_timeout_ms": _CONNECT_MS,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        settings = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_committed"}
        try:
            with connection_causes() as causes:
                self._consumer = kafka.KafkaConsumer(
                    **self._common | settings | options_of(kafka.KafkaConsumer.DEFAULT_CONFIG, options)
                )
        except kafka.errors.KafkaError as error:
            raise unreachable(bootstrap_servers, "; ".join(causes) or error) from error

    def ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        """Look the offsets up."""
        partitions = [
            self._kafka.TopicPartition(topic, each) for each in self._consumer.partitions_for_topic(topic) or ()
        ]
        begins, ends = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
        return {each.partition: (begins[each], ends[each]) for each in partitions}

    def read(self, topic: str, partition: int, start: int, stop: int) -> list[StoredRecord]:
        """Fetch the records, for 20 s at most, or until none came for two seconds."""
        place = self._kafka.TopicPartition(topic, partition)
        self._consumer.assign([place])
        self._consumer.seek(place, start)
        found: list[StoredRecord] = []
        now_s = time.monotonic()
        give_up_s, idle_s = now_s + _READ_S, now_s + _IDLE_S
        while self._consumer.position(place) < stop and time.monotonic() < min(give_up_s, idle_s):
            for record in self._consumer.poll(timeout_ms=_POLL_MS).get(place, ()):
                idle_s = time.monotonic() + _IDLE_S
                headers = tuple((name, value) for name, value in record.headers or ())
                found.append(
                    StoredRecord(partition, record.offset, record.timestamp, record.key, record.value, headers)
                )
        return [record for record in found if start <= record.offset < stop]

    def append(self, topic: str, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Send the record."""
        if self._producer is None:
            limits = {"max_request_size": self._max_record_bytes}
            options = options_of(self._kafka.KafkaProducer.DEFAULT_CONFIG, self._options)
            self._producer = self._kafka.KafkaProducer(**self._common | limits | options)
        # kafka-python writes no null.
        given = [(name, header or b"") for name, header in headers]
        try:
            self._producer.send(topic, value, key=key, headers=given).get(timeout=_SEND_S)
        except self._kafka.errors.KafkaError as error:
            raise NotSent(f"the broker did not take the request: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()
        if self._producer is not None:
            self._producer.close(timeout=1)
