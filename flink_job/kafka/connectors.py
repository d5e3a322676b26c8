"""Kafka sources and sinks of the job."""

from collections.abc import Sequence

from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetResetStrategy,
    KafkaOffsetsInitializer,
    KafkaSink,
)

from anabranch.flink_job import java
from anabranch.flink_job.config import Config, frames_stay_in_process
from anabranch.flink_job.kafka.properties import java_client_properties
from anabranch.flink_job.state.operator_ids import REQUESTS
from anabranch.operators.runtime.flink_compat import (
    java_gateway,
    java_initializer,
    pool_transactions,
    set_record_writer,
)
from anabranch.schemas.limits import KAFKA_FETCH_BYTES, PRODUCE_BATCH_BYTES

_RESET = {"earliest": KafkaOffsetResetStrategy.EARLIEST, "latest": KafkaOffsetResetStrategy.LATEST}

#: Answers that wait for a restart are lost after it; brokers allow 15 minutes.
_TRANSACTION_TIMEOUT_MS = 15 * 60 * 1000


def read_requests(env: StreamExecutionEnvironment, config: Config, keys_by_group: Sequence[int]) -> DataStream:
    """Return all requests as `Row(task key, frame)`; see `java.read_frames`."""
    kafka = config.kafka
    gateway = java_gateway()
    properties = {
        # Five minutes by default.
        "partition.discovery.interval.ms": str(kafka.discovery_interval_ms),
        "isolation.level": kafka.isolation,
        **java_client_properties(kafka),
        "auto.offset.reset": kafka.start,
        "max.partition.fetch.bytes": str(kafka.record_limit_bytes),
        "fetch.max.wait.ms": "100",
        # Chosen by the system; 64 KB by default.
        "receive.buffer.bytes": "-1",
        # A busy task gets many small fetches; Flink keeps 2 by default.
        "source.reader.element.queue.capacity": "8",
        "fetch.max.bytes": str(KAFKA_FETCH_BYTES),
    }
    # PyFlink's drops partition, offset and timestamp.
    builder = gateway.jvm.org.apache.flink.connector.kafka.source.KafkaSource.builder()
    topics = gateway.jvm.java.util.ArrayList()
    for topic in (kafka.requests_topic, *[flow.source for flow in config.flow]):
        topics.add(topic)
    for name, value in properties.items():
        builder.setProperty(name, value)
    builder.setBootstrapServers(kafka.bootstrap_servers).setGroupId(kafka.group_id).setTopics(topics)
    builder.setStartingOffsets(java_initializer(KafkaOffsetsInitializer.committed_offsets(_RESET[kafka.start])))
    if config.job.bounded:
        builder.setBounded(java_initializer(KafkaOffsetsInitializer.latest()))
    stay = frames_stay_in_process(config)
    return java.read_frames(
        env,
        builder,
        keys_by_group,
        REQUESTS,
        stay_in_process=stay,
        headers=kafka.headers,
        requests_topic=kafka.requests_topic,
    )


def write(stream: DataStream, config: Config, topic: str, name: str, *, replies: bool = True) -> None:
    """Write `Row(key, value, carried)` to a topic.

    Args:
        name: Name and identity of the operator, and part of transactional ids.
        replies: Uses reply addresses.
    """
    kafka = config.kafka
    largest_bytes = max(kafka.record_limit_bytes, kafka.letter_limit_bytes)
    client_properties = java_client_properties(kafka)
    serializer = java.record_writer(
        topic,
        {**client_properties, "bootstrap.servers": kafka.bootstrap_servers},
        replies=replies,
        # Flink ends a killed task's transactions in these topics only.
        reply_topics=(*kafka.reply_topics, *(flow.to for flow in config.flow)),
    )
    builder = (
        KafkaSink.builder()
        .set_bootstrap_servers(kafka.bootstrap_servers)
        # 5 ms by default.
        .set_property("linger.ms", "0")
        # What comes meanwhile leaves together.
        .set_property("max.in.flight.requests.per.connection", "1")
        .set_property("batch.size", str(PRODUCE_BATCH_BYTES))
        .set_property("max.request.size", str(largest_bytes))
        .set_property("buffer.memory", str(max(33_554_432, 2 * largest_bytes)))
    )
    set_record_writer(builder, serializer)
    for key, value in client_properties.items():
        builder = builder.set_property(key, value)
    if config.job.delivery == "exactly-once":
        builder = (
            builder.set_delivery_guarantee(DeliveryGuarantee.EXACTLY_ONCE)
            .set_transactional_id_prefix(transaction_prefix(config) + name)
            .set_property("transaction.timeout.ms", str(_TRANSACTION_TIMEOUT_MS))
        )
        pool_transactions(builder)
    else:
        builder = builder.set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    stream.sink_to(builder.build()).name(name).uid(name)


def transaction_prefix(config: Config) -> str:
    """Return the start of a job's transactional ids, different from those of other jobs."""
    return f"{config.job.name}.{config.kafka.requests_topic}.{config.kafka.group_id}."
