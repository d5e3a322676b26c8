"""The connection of a gateway to Kafka by librdkafka, whose threads need no Python.

It behaves as `KafkaConnection` with a partition of its own, but outlives a broker that is away. Keys of requests do not
choose their partitions.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka as rdkafka

from anabranch.messaging.connection import Headers, IsolationLevel
from anabranch.messaging.errors import NotSent, TopicMissing, TransportError
from anabranch.messaging.kafka_options import unreachable
from anabranch.schemas.errors import AnabranchError, RequestTooLarge
from anabranch.schemas.limits import KAFKA_FRAMING_BYTES
from anabranch.served_models import ServedModels, read_served_models

_LOGGER = logging.getLogger("anabranch.kafka")

#: Options of kafka-python in librdkafka's names.
_NAMES = {
    "client_id": "client.id",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_password": "sasl.password",
    "sasl_plain_username": "sasl.username",
    "security_protocol": "security.protocol",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
}
_CONNECT_S = 5.0
_DISCOVERY_MS, _LOOK_S = 3_000, 0.5
_MOST_ANSWERS = 500
_CLOSE_S = 1.0
#: Requests of that time go to one partition, so that they reach the broker together.
_TURN_S = 0.002


def rdkafka_options(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Translate options of kafka-python; None if one of them has no counterpart."""
    translated: dict[str, Any] = {}
    for name, value in options.items():
        if name == "ssl_check_hostname":
            translated["ssl.endpoint.identification.algorithm"] = "https" if value else "none"
        elif name in _NAMES:
            translated[_NAMES[name]] = value
        else:
            return None
    return translated


class Turns:
    """Partitions in turn."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._partition = 0
        self._until_s = 0.0

    def next(self, now_s: float) -> int:
        """Return the partition of a request."""
        if now_s >= self._until_s:
            self._until_s = now_s + _TURN_S
            self._partition = (self._partition + 1) % self.count
        return self._partition


class RdKafkaConnection:
    """A `Connection` over Kafka.

    Args:
        options: See `rdkafka_options`.
        python_options: The same for kafka-python, which reads the served models.

    Raises:
        BrokerUnreachable: No broker answers.
        TopicMissing: One of the topics does not exist.
    """

    sends_at_once = True

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        requests_topic: str,
        responses_topic: str,
        models_topic: str,
        max_message_bytes: int,
        isolation_level: IsolationLevel,
        options: Mapping[str, Any],
        python_options: Mapping[str, Any],
    ) -> None:
        self._models = bootstrap_servers, models_topic, python_options
        self._requests_topic = requests_topic
        self._look_s = time.monotonic() + _DISCOVERY_MS / 1000
        common = {
            "bootstrap.servers": bootstrap_servers,
            "topic.metadata.refresh.interval.ms": _DISCOVERY_MS,
            "allow.auto.create.topics": False,
            "socket.nagle.disable": True,
            "error_cb": _note,
            **options,
        }
        self._consumer = rdkafka.Consumer(
            common
            | {
                # It commits nothing.
                "group.id": "anabranch-gateway",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": isolation_level,
                "fetch.min.bytes": 1,
                "fetch.message.max.bytes": max_message_bytes + KAFKA_FRAMING_BYTES,
            },
            logger=_LOGGER,
        )
        try:
            partitions = self._partitions(bootstrap_servers, requests_topic, responses_topic)
            self._turns = Turns(partitions[requests_topic])
            number = random.randrange(partitions[responses_topic])  # noqa: S311 - spreads load
            place = rdkafka.TopicPartition(responses_topic, number)
            place.offset = self._consumer.get_watermark_offsets(place, _CONNECT_S)[1]
            self._consumer.assign([place])
        except rdkafka.KafkaException as error:
            self._consumer.close()
            raise unreachable(bootstrap_servers, error) from error
        except AnabranchError:
            self._consumer.close()
            raise
        self.partition = number
        self._headers = [("reply-partition", b"%d" % number)]
        self._producer = rdkafka.Producer(
            common
            | {
                "linger.ms": 0,
                # What comes meanwhile leaves together.
                "max.in.flight.requests.per.connection": 1,
                "enable.idempotence": True,
                "message.max.bytes": max_message_bytes + KAFKA_FRAMING_BYTES,
            },
            logger=_LOGGER,
        )

    def _partitions(self, bootstrap_servers: str, requests_topic: str, responses_topic: str) -> dict[str, int]:
        topics = self._consumer.list_topics(timeout=_CONNECT_S).topics
        for topic in (requests_topic, responses_topic):
            if topic not in topics or not topics[topic].partitions:
                raise TopicMissing(
                    f"the broker at {bootstrap_servers} has no topic {topic!r}: start the job, which makes it "
                    "(anabranch run), or name the topic that the job uses"
                )
        return {topic: len(topics[topic].partitions) for topic in (requests_topic, responses_topic)}

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        """Hand a request to the producer."""

        def delivered(error: rdkafka.KafkaError | None, _: object) -> None:
            if error is not None:
                fail(_not_sent(error, len(message)))

        try:
            self._producer.produce(
                self._requests_topic,
                message,
                key,
                partition=self._turns.next(time.monotonic()),
                headers=[*self._headers, *headers],
                on_delivery=delivered,
            )
        except (BufferError, rdkafka.KafkaException) as error:
            reason = error.args[0] if isinstance(error, rdkafka.KafkaException) else error
            fail(_not_sent(reason, len(message)))
        self._producer.poll(0)

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        """Wait for an answer, and return all that are there."""
        self._producer.poll(0)
        self._look_for_partitions()
        first = self._consumer.poll(timeout_ms / 1000)
        if first is None:
            return
        for record in (first, *self._consumer.consume(_MOST_ANSWERS, 0)):
            error = record.error()
            if error is None:
                yield record.key(), record.value() or b""
            elif error.fatal() or not error.retriable():
                raise TransportError(f"answers cannot be read from Kafka: {error.str()}")

    def _look_for_partitions(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_s:
            self._look_s = now_s + _DISCOVERY_MS / 1000
            with suppress(rdkafka.KafkaException):
                topics = self._consumer.list_topics(self._requests_topic, timeout=_LOOK_S).topics
                self._turns.count = len(topics[self._requests_topic].partitions) or self._turns.count

    def served_models(self) -> ServedModels:
        """Read the topic of models."""
        return read_served_models(*self._models)

    def close_sender(self) -> None:
        """Close the producer; a request that it has not sent within a second is dropped."""
        self._producer.flush(_CLOSE_S)

    def close_receiver(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def _note(error: rdkafka.KafkaError) -> None:
    _LOGGER.warning("Kafka: %s", error.str())


def _not_sent(error: rdkafka.KafkaError | BufferError, size_bytes: int) -> AnabranchError:
    if isinstance(error, rdkafka.KafkaError) and error.code() == rdkafka.KafkaError.MSG_SIZE_TOO_LARGE:
        return RequestTooLarge(
            f"the request takes {size_bytes} bytes, which the broker refuses: raise the topic's max.message.bytes"
        )
    return NotSent(f"the broker did not take the request: {error}")
