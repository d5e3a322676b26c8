"""The connection of a gateway to the topics of a job."""

from __future__ import annotations

from anabranch.flink_job.config import Config
from anabranch.flink_job.kafka.properties import python_client_options
from anabranch.messaging.connection import Connection, KafkaConnection, known_options
from anabranch.messaging.rdkafka_connection import RdKafkaConnection, rdkafka_options


def connection_for_job(config: Config, *, timeout_s: float = 30.0) -> Connection:
    """Connect by librdkafka, or by kafka-python if `kafka.properties` has options that only that has.

    Raises:
        BrokerUnreachable, TopicMissing, ConfigError: See `Client`.
    """
    kafka = config.kafka
    options = known_options(python_client_options(kafka))
    translated = rdkafka_options(options)
    if translated is None:
        return KafkaConnection(
            kafka.bootstrap_servers,
            requests_topic=kafka.requests_topic,
            responses_topic=kafka.responses_topic,
            max_message_bytes=kafka.max_message_bytes,
            isolation_level="read_committed",
            properties=options,
            timeout_s=timeout_s,
            own_partition=True,
            models_topic=kafka.models_topic,
        )
    return RdKafkaConnection(
        kafka.bootstrap_servers,
        requests_topic=kafka.requests_topic,
        responses_topic=kafka.responses_topic,
        models_topic=kafka.models_topic,
        max_message_bytes=kafka.max_message_bytes,
        isolation_level="read_committed",
        options=translated,
        python_options=options,
    )
