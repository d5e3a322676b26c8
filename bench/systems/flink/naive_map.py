"""A peer: a PyFlink job with one `map` that runs the model for each record.

    Kafka value --> [ map: parse, session.run, serialise ] --> Kafka value

It has our settings of Flink and Kafka.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.common.serialization import ByteArraySchema
from pyflink.datastream import DataStream, MapFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.java_gateway import get_gateway

from anabranch.flink_job import installation
from bench.harness.messages import ServeCommand
from bench.systems.anabranch_job import config_of, peer_options
from bench.systems.direct_models import DirectModels


class InferMap(MapFunction):
    """ModelInferRequest -> ModelInferResponse, one session call each."""

    def __init__(self, repository: str) -> None:
        self._repository = repository

    def open(self, runtime_context: RuntimeContext) -> None:  # noqa: ARG002 - Flink's
        """Load the models."""
        self._models = DirectModels(Path(self._repository))

    def map(self, value: bytes) -> bytes:
        """Answer one request."""
        return self._models.answer(value)


def run(command: ServeCommand) -> None:
    """Run the job until this process is stopped."""
    run_map(command, InferMap(command.repository))


def run_map(command: ServeCommand, function: MapFunction) -> None:
    """Run a job with one map from values to values."""
    installation.activate()
    env = _environment(command)
    env.set_parallelism(command.parallelism)
    values = source_of(env, command).map(function, Types.PRIMITIVE_ARRAY(Types.BYTE()))
    values.sink_to(sink_of(command))
    env.execute("naive map")


def source_of(
    env: StreamExecutionEnvironment, command: ServeCommand, properties: Mapping[str, str] | None = None
) -> DataStream:
    """Return the values of the requests topic.

    Args:
        properties: More settings of Flink's source and its Kafka client.
    """
    builder = (
        KafkaSource.builder()
        .set_bootstrap_servers(command.bootstrap_servers)
        .set_topics(command.requests_topic)
        .set_group_id(command.group_id)
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(ByteArraySchema())
    )
    for name, value in {"fetch.max.wait.ms": "100", **(properties or {})}.items():
        builder = builder.set_property(name, value)
    return env.from_source(builder.build(), WatermarkStrategy.no_watermarks(), "requests")


def sink_of(command: ServeCommand, properties: Mapping[str, str] | None = None) -> KafkaSink:
    """Return the sink of answers.

    Args:
        properties: More settings of its Kafka client.
    """
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(command.responses_topic)
        .set_value_serialization_schema(ByteArraySchema())
        .build()
    )
    builder = (
        KafkaSink.builder()
        .set_bootstrap_servers(command.bootstrap_servers)
        .set_record_serializer(serializer)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    )
    for name, value in {"linger.ms": "0", **(properties or {})}.items():
        builder = builder.set_property(name, value)
    return builder.build()


def _environment(command: ServeCommand) -> StreamExecutionEnvironment:
    """Return the kind of cluster, and the options, that our own job has."""
    options = peer_options(config_of(command))
    settings = Configuration()
    if command.flink_url is None:
        options = {
            "rest.port": "0",
            "rest.bind-address": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": str(command.parallelism),
            "_python_worker_execution_mode": "process",
            "execution.checkpointing.dir": Path(tempfile.mkdtemp(prefix="bench-checkpoints-")).as_uri(),
        } | options
    for key, value in options.items():
        settings.set_string(key, value)
    if command.flink_url is None:
        return StreamExecutionEnvironment.get_execution_environment(settings)
    address = urlsplit(command.flink_url)
    gateway: Any = get_gateway()
    java_environment = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    return StreamExecutionEnvironment(
        java_environment.createRemoteEnvironment(
            address.hostname,
            address.port,
            settings._j_configuration,  # noqa: SLF001 - PyFlink has no other way to a running cluster
            gateway.new_array(gateway.jvm.java.lang.String, 0),
        )
    )
