"""The only place that knows how the job reads from Kafka and writes to it.

The source is declared in SQL, since PyFlink's own Kafka source gives the value alone: a request's partition and offset
name it (they are the same again after a replay), and its timestamp starts its deadline. Its rows stay in Java, as
Flink's own `RowData`, until they are packed into frames.
"""

from typing import Any

from pyflink.common.serialization import RowFieldExtractorSchema
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import KafkaRecordSerializationSchema, KafkaSink
from pyflink.java_gateway import get_gateway
from pyflink.table import StreamTableEnvironment

from flink_job.config import Config

#: Brokers refuse more than 15 minutes by default; it must outlast a checkpoint and a restart.
_TRANSACTION_TIMEOUT_MS = 10 * 60 * 1000


def read_requests(env: StreamExecutionEnvironment, config: Config) -> DataStream:
    """`RowData(value, partition, offset, timestamp)` of every request."""
    kafka = config.kafka
    properties = {
        **kafka.properties,
        "bootstrap.servers": kafka.bootstrap_servers,
        "group.id": kafka.group_id,
        "auto.offset.reset": kafka.start,
        "max.partition.fetch.bytes": str(kafka.record_limit_bytes),
        "fetch.max.wait.ms": "100",
    }
    options = {
        "connector": "kafka",
        "topic": kafka.requests_topic,
        "format": "raw",
        "scan.startup.mode": "group-offsets",
        **({"scan.bounded.mode": "latest-offset"} if config.job.bounded else {}),
        **{f"properties.{name}": value for name, value in properties.items()},
    }
    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(
        "CREATE TEMPORARY TABLE requests (`value` BYTES, `partition` INT METADATA VIRTUAL, "
        "`offset` BIGINT METADATA VIRTUAL, `timestamp` TIMESTAMP_LTZ(3) METADATA VIRTUAL) "
        f"WITH ({', '.join(f'{_quote(name)} = {_quote(value)}' for name, value in options.items())})"
    )
    rows = tables.sql_query("SELECT `value`, `partition`, `offset`, `timestamp` FROM requests")
    gateway: Any = get_gateway()
    row_data = gateway.jvm.java.lang.Class.forName("org.apache.flink.table.data.RowData")
    data_type = rows._j_table.getResolvedSchema().toPhysicalRowDataType().bridgedTo(row_data)
    return DataStream(tables._j_tenv.toDataStream(rows._j_table, data_type))


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


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
