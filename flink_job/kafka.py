"""The only place that knows how the job reads from Kafka and writes to it."""

from collections.abc import Sequence

from pyflink.common.serialization import RowFieldExtractorSchema
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetResetStrategy,
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
)

from anabranch.flink_job import java
from anabranch.flink_job.config import Config, frames_stay_in_process
from anabranch.operators.runtime.flink_compat import java_gateway, java_initializer

#: What a fetch takes of broker and job is shared by its records (ADR 0017); eight of them may wait in memory, for each
#: task. A larger record comes alone.
_FETCH_BYTES = 8 * 1024 * 1024
_RESET = {"earliest": KafkaOffsetResetStrategy.EARLIEST, "latest": KafkaOffsetResetStrategy.LATEST}

#: Brokers refuse more than 15 minutes by default; it must outlast a checkpoint and a restart.
_TRANSACTION_TIMEOUT_MS = 10 * 60 * 1000


def read_requests(env: StreamExecutionEnvironment, config: Config, keys_by_group: Sequence[int]) -> DataStream:
    """`Row(lane, frame)`: all requests, as many in a frame as are there (see `anabranch.schemas.frames`).

    Args:
        keys_by_group: See `anabranch.operators.core.scheduling.key_groups`.
    """
    kafka = config.kafka
    gateway = java_gateway()
    properties = {
        **kafka.properties,
        "auto.offset.reset": kafka.start,
        "max.partition.fetch.bytes": str(kafka.record_limit_bytes),
        "fetch.max.wait.ms": "100",
        # What the system finds right, and not Kafka's 64 KB, which a request of 100 KB does not fit into.
        "receive.buffer.bytes": "-1",
        # What comes while the task is busy is fetched meanwhile, a few records a time, and has to be at hand when the
        # task looks: with Flink's 2 fetches, a third waits for the next look. The size of a fetch bounds the memory.
        "source.reader.element.queue.capacity": "8",
        "fetch.max.bytes": str(_FETCH_BYTES),
    }
    # PyFlink's own builder gives the value alone: a request's partition and offset name it, for they are the same again
    # after a replay, and its timestamp starts its deadline.
    builder = gateway.jvm.org.apache.flink.connector.kafka.source.KafkaSource.builder()
    topics = gateway.jvm.java.util.Collections.singletonList(kafka.requests_topic)
    for name, value in properties.items():
        builder.setProperty(name, value)
    builder.setBootstrapServers(kafka.bootstrap_servers).setGroupId(kafka.group_id).setTopics(topics)
    builder.setStartingOffsets(java_initializer(KafkaOffsetsInitializer.committed_offsets(_RESET[kafka.start])))
    if config.job.bounded:
        builder.setBounded(java_initializer(KafkaOffsetsInitializer.latest()))
    stay = frames_stay_in_process(config)
    return java.read_frames(env, builder, keys_by_group, "requests", stay_in_process=stay)


def write(stream: DataStream, config: Config, topic: str, name: str) -> None:
    """Writes `Row(key: bytes, value: bytes)` to a topic, with the job's delivery guarantee."""
    kafka = config.kafka
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(topic)
        .set_key_serialization_schema(RowFieldExtractorSchema(0))
        .set_value_serialization_schema(RowFieldExtractorSchema(1))
        .build()
    )
    builder = (
        KafkaSink.builder()
        .set_bootstrap_servers(kafka.bootstrap_servers)
        .set_record_serializer(serializer)
        # Kafka 4 clients wait 5 ms for company by default.
        .set_property("linger.ms", "0")
        .set_property("max.request.size", str(kafka.letter_limit_bytes))
        .set_property("buffer.memory", str(max(33_554_432, 2 * kafka.letter_limit_bytes)))
    )
    for key, value in kafka.properties.items():
        builder = builder.set_property(key, value)
    if config.job.delivery == "exactly-once":
        builder = (
            builder.set_delivery_guarantee(DeliveryGuarantee.EXACTLY_ONCE)
            .set_transactional_id_prefix(f"{config.job.name}-{name}")
            .set_property("transaction.timeout.ms", str(_TRANSACTION_TIMEOUT_MS))
        )
    else:
        builder = builder.set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    stream.sink_to(builder.build()).name(name)
