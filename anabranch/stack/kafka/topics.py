"""Looks at the topics of a Kafka cluster, and creates them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from anabranch.messaging.kafka_options import connection_causes, options_of
from anabranch.stack.errors import StackError, TopicNotMade

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

_ADMIN_TIMEOUT_MS = 30_000
_BOOTSTRAP_TIMEOUT_MS = 10_000
_SIZE_LIMIT = "max.message.bytes"
#: Kafka's number for "as the broker is configured".
_BROKER_DEFAULT = -1


class Topic(msgspec.Struct, frozen=True):
    """A topic to create.

    Attributes:
        name: Its name.
        partitions: Number of its partitions.
        settings: Kafka's own settings of a topic, such as `retention.ms`.
        replication: Replicas of each partition; 0 for the broker's default.
    """

    name: str
    partitions: int = 1
    settings: Mapping[str, str] = {}
    replication: int = 0


def create_topics(
    bootstrap_servers: str, topics: Iterable[Topic], options: Mapping[str, Any] | None = None
) -> list[str]:
    """Create the missing topics, and return their names.

    On return each topic can be written to and read from.

    Args:
        options: Further options of kafka-python, such as `security_protocol`.

    Raises:
        TopicNotMade: The broker refused one, or does not answer.
    """
    from kafka.errors import KafkaError  # noqa: PLC0415 - as in `connected_admin`

    wanted = {topic.name: topic for topic in topics}
    try:
        with connected_admin(bootstrap_servers, options) as admin:
            present = set(admin.list_topics())
            missing = [name for name in wanted if name not in present]
            if missing:
                admin.create_topics(
                    {
                        name: {
                            "num_partitions": wanted[name].partitions,
                            "replication_factor": wanted[name].replication or _BROKER_DEFAULT,
                            "configs": dict(wanted[name].settings),
                        }
                        for name in missing
                    },
                    timeout_ms=_ADMIN_TIMEOUT_MS,
                    wait_for_metadata=True,
                )
    except KafkaError as error:
        raise TopicNotMade(
            f"cannot create {', '.join(wanted)} on {bootstrap_servers}: {error}; check names, broker and kafka.security"
        ) from error
    return missing


def partition_counts(bootstrap_servers: str, options: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return the number of partitions of every topic that may be read.

    Raises:
        StackError: The broker does not answer.
    """
    from kafka.errors import KafkaError  # noqa: PLC0415 - as in `connected_admin`

    try:
        with connected_admin(bootstrap_servers, options) as admin:
            return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
    except KafkaError as error:
        raise no_answer(bootstrap_servers, error) from error


def size_limits(
    bootstrap_servers: str, topics: Iterable[str], options: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Return `max.message.bytes` of topics; a topic that may not be described is left out.

    Raises:
        StackError: The broker does not answer.
    """
    from kafka.admin import ConfigResource, ConfigResourceType  # noqa: PLC0415 - as in `connected_admin`
    from kafka.errors import AuthorizationError, KafkaError  # noqa: PLC0415

    resources = [ConfigResource(ConfigResourceType.TOPIC, name, [_SIZE_LIMIT]) for name in topics]
    try:
        with connected_admin(bootstrap_servers, options) as admin:
            described = admin.describe_configs(resources, config_filter="all")
    except AuthorizationError:
        return {}
    except KafkaError as error:
        raise no_answer(bootstrap_servers, error) from error
    found = {name: settings for kind in described.values() for name, settings in kind.items()}
    return {name: int(settings[_SIZE_LIMIT]["value"]) for name, settings in found.items() if _SIZE_LIMIT in settings}


def record_counts(
    bootstrap_servers: str, topics: Iterable[str], options: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Return the number of records written to each topic; transaction markers count, too.

    Raises:
        StackError: The broker does not answer.
    """
    from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415 - as in `connected_admin`
    from kafka.errors import KafkaError  # noqa: PLC0415

    try:
        known = options_of(KafkaConsumer.DEFAULT_CONFIG, options or {})
        with _explained():
            consumer = KafkaConsumer(
                bootstrap_servers=bootstrap_servers, bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS, **known
            )
        try:
            return {
                topic: sum(
                    consumer.end_offsets(
                        [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
                    ).values()
                )
                for topic in topics
            }
        finally:
            consumer.close()
    except KafkaError as error:
        raise no_answer(bootstrap_servers, error) from error


@contextmanager
def connected_admin(bootstrap_servers: str, options: Mapping[str, Any] | None) -> Iterator[KafkaAdminClient]:
    """Yield an admin client, whose first error says why no connection was made."""
    # A third of a second, which only callers should pay.
    from kafka import KafkaAdminClient  # noqa: PLC0415

    known = options_of(KafkaAdminClient.DEFAULT_CONFIG, options or {})
    with _explained():
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap_servers,
            client_id="anabranch-topics",
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
            **known,
        )
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def _explained() -> Iterator[None]:
    from kafka.errors import KafkaError  # noqa: PLC0415 - as above

    with connection_causes() as causes:
        try:
            yield
        except KafkaError as error:
            raise KafkaError("; ".join(causes) or str(error)) from error


def no_answer(bootstrap_servers: str, error: Exception) -> StackError:
    """Return the error for a broker that cannot be reached."""
    return StackError(f"no Kafka broker answers at {bootstrap_servers} ({error}): check the address and kafka.security")
