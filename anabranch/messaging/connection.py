"""The connection of a client to Kafka.

Requests are sent with `acks=all` and idempotence, Kafka's defaults: none is lost with a broker or sent twice, and
requests with one key stay in order.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Protocol

import kafka
import kafka.errors

from anabranch.messaging.errors import NotSent, TopicMissing, UnknownProperty
from anabranch.messaging.kafka_codecs import check_codecs, codec_missing
from anabranch.messaging.kafka_options import connection_causes, options_of, unreachable
from anabranch.schemas.errors import AnabranchError, RequestTooLarge
from anabranch.schemas.limits import KAFKA_FRAMING_BYTES
from anabranch.served_models import ServedModels, read_served_models

#: Names and values.
Headers = Sequence[tuple[str, bytes]]
IsolationLevel = Literal["read_committed", "read_uncommitted"]

_CONNECT_S = 5.0
#: New partitions are seen within that time.
_DISCOVERY_MS = 3_000


class Connection(Protocol):
    """Carries encoded requests and answers."""

    @property
    def sends_at_once(self) -> bool:
        """True if `send` never waits, so that an event loop may call it."""

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        """Send a request from any thread; call `fail` if it cannot be sent, now or later."""

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        """Return keys and values of new answers. Always called by the same thread."""

    def served_models(self) -> ServedModels:
        """Return the models that jobs have published."""

    def close_sender(self) -> None:
        """End the sending half."""

    def close_receiver(self) -> None:
        """End the receiving half, on the thread that receives."""


class KafkaConnection:
    """A `Connection` over Kafka: a producer, and a consumer of answers.

    The consumer has no group and starts at the end. Raises the errors of `Client`.

    Args:
        reply_topic: Topic of the answers; None for the responses topic.
        own_partition: Draws one partition, which each request names for its answer, so that the answers of others are
            not read. Otherwise reads all partitions.
    """

    sends_at_once = False

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        requests_topic: str,
        responses_topic: str,
        max_message_bytes: int,
        isolation_level: IsolationLevel,
        properties: Mapping[str, Any],
        timeout_s: float = 30.0,
        reply_topic: str | None = None,
        own_partition: bool = False,
        models_topic: str = "inference-models",
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._models_topic = models_topic
        self._requests_topic = requests_topic
        self._answers_topic = answers_topic = reply_topic or responses_topic
        self._headers: list[tuple[str, bytes]] = []
        #: Of the answers; None for all.
        self.partition: int | None = None
        common = {
            "bootstrap_servers": bootstrap_servers.split(","),
            "bootstrap_timeout_ms": int(_CONNECT_S * 1000),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "metadata_max_age_ms": _DISCOVERY_MS,
        }
        consuming = common | {
            "group_id": None,
            "enable_auto_commit": False,
            # A partition that is new holds only answers that came after this client.
            "auto_offset_reset": "earliest",
            "isolation_level": isolation_level,
            "fetch_min_bytes": 1,
            "fetch_max_bytes": max(4 * max_message_bytes, 52_428_800),
            "max_partition_fetch_bytes": max_message_bytes + KAFKA_FRAMING_BYTES,
        }
        producing = common | {
            "linger_ms": 0,
            "max_request_size": max_message_bytes + KAFKA_FRAMING_BYTES,
            "max_block_ms": int(min(_CONNECT_S, timeout_s) * 1000),
        }
        for_consumer, for_producer = _divide(properties)
        self._consumer_options = common | for_consumer
        if not for_consumer.keys() & {"proxy_url", "socks5_proxy"}:
            _probe(bootstrap_servers)
        try:
            with connection_causes() as causes, ExitStack() as opened:
                self._consumer = kafka.KafkaConsumer(**consuming | for_consumer)
                opened.callback(self._consumer.close)
                _check_topics(self._consumer, requests_topic, answers_topic, bootstrap_servers)
                check_codecs(bootstrap_servers, answers_topic, common | for_consumer)
                numbers = sorted(self._consumer.partitions_for_topic(answers_topic))
                if own_partition:
                    self.partition = random.choice(numbers)  # noqa: S311 - spreads load
                    self._headers.append(("reply-partition", b"%d" % self.partition))
                    numbers = [self.partition]
                _seek_to_end(self._consumer, answers_topic, numbers)
                self._producer = kafka.KafkaProducer(**producing | for_producer)
                opened.callback(self._producer.close, timeout=0)
                # Fetches the metadata now, so that the first request does not wait for it.
                self._producer.partitions_for(requests_topic)
                opened.pop_all()
        except kafka.errors.KafkaError as error:
            raise unreachable(bootstrap_servers, "; ".join(causes) or error) from error
        if reply_topic:
            self._headers.append(("reply-topic", reply_topic.encode()))

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        """Hand a request to the producer."""

        def on_error(error: Exception) -> None:
            fail(_not_sent(error, len(message)))

        try:
            sent = self._producer.send(self._requests_topic, message, key=key, headers=[*self._headers, *headers])
        except kafka.errors.KafkaError as error:
            on_error(error)
        else:
            sent.add_errback(on_error)

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        """Poll the answers; with all partitions, those that there are by now."""
        if self.partition is None:
            numbers = self._consumer.partitions_for_topic(self._answers_topic)
            if len(numbers) > len(self._consumer.assignment()):
                self._consumer.assign([kafka.TopicPartition(self._answers_topic, number) for number in sorted(numbers)])
        try:
            polled = self._consumer.poll(timeout_ms=timeout_ms)
        except kafka.errors.UnsupportedCodecError as error:
            raise codec_missing(str(error)) from error
        for records in polled.values():
            for record in records:
                yield record.key, record.value

    def served_models(self) -> ServedModels:
        """Read the topic of models."""
        return read_served_models(self._bootstrap_servers, self._models_topic, self._consumer_options)

    def close_sender(self) -> None:
        """Close the producer; a request that it has not sent within a second is dropped."""
        self._producer.close(timeout=1)

    def close_receiver(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that kafka-python has: a job's file may hold options that only Java has."""
    known = kafka.KafkaConsumer.DEFAULT_CONFIG.keys() | kafka.KafkaProducer.DEFAULT_CONFIG.keys()
    return {name: value for name, value in options.items() if name in known}


def _divide(properties: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split properties into those of a consumer and those of a producer."""
    named = {name.replace(".", "_"): value for name, value in properties.items()}
    consumer, producer = kafka.KafkaConsumer.DEFAULT_CONFIG, kafka.KafkaProducer.DEFAULT_CONFIG
    unknown = named.keys() - consumer.keys() - producer.keys()
    if unknown:
        raise UnknownProperty(
            f"kafka-python has no option {', '.join(sorted(unknown))}: use the names that its KafkaConsumer and "
            "KafkaProducer have"
        )
    return options_of(consumer, named), options_of(producer, named)


def _probe(bootstrap_servers: str) -> None:
    """Fail at once if no server listens; kafka-python would retry until its time-out."""
    refusal: Exception | None = None
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError) as error:
            refusal = error
        else:
            return
    raise unreachable(bootstrap_servers, refusal) from refusal


def _check_topics(
    consumer: kafka.KafkaConsumer, requests_topic: str, responses_topic: str, bootstrap_servers: str
) -> None:
    for topic in (requests_topic, responses_topic):
        if not consumer.partitions_for_topic(topic):
            raise TopicMissing(
                f"the broker at {bootstrap_servers} has no topic {topic!r}: start the job, which makes it "
                "(anabranch run), or name the topic that the job uses"
            )


def _seek_to_end(consumer: kafka.KafkaConsumer, topic: str, numbers: Sequence[int]) -> None:
    """Assign partitions of a topic, from their ends."""
    partitions = [kafka.TopicPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    # `seek_to_end` looks the end up at the first poll, which may be after the first answer.
    for partition, offset in consumer.end_offsets(partitions).items():
        consumer.seek(partition, offset)


def _not_sent(error: Exception, size_bytes: int) -> AnabranchError:
    if isinstance(error, (kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError)):
        return RequestTooLarge(
            f"the request takes {size_bytes} bytes, which the broker refuses: raise the topic's max.message.bytes"
        )
    return NotSent(f"the broker did not take the request: {error}")
