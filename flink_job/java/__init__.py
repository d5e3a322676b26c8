"""Packs Kafka records into frames, and unpacks frames of answers, in Java.

Kafka --> [ FrameSource ] --> Python --> [ UnpackAnswers ] --> [ RecordWriter ] --> Kafka
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pyflink.common import TypeInformation
from pyflink.datastream import DataStream, StreamExecutionEnvironment

from anabranch.operators.runtime.flink_compat import java_gateway, java_stream, source_stream
from anabranch.schemas.limits import REQUEST_FRAME_BYTES, REQUEST_FRAME_RECORDS


def read_frames(
    env: StreamExecutionEnvironment,
    kafka_builder: Any,
    keys_by_group: Sequence[int],
    name: str,
    *,
    stay_in_process: bool,
    headers: Sequence[str] = (),
    carries_keys: bool = False,
    requests_topic: str,
) -> DataStream:
    """Return requests as `Row(task key, frame)`; see `anabranch.schemas.frames`.

    Args:
        name: Name and identity of the operator.
        keys_by_group: See `operators.core.scheduling.key_groups`.
        stay_in_process: Python reads large frames in Java's memory.
        headers: Carried headers; `*` for all.
        carries_keys: Carries keys, too.
        requests_topic: Records of other topics are events of flows.
    """
    gateway = java_gateway()
    kafka_builder.setDeserializer(gateway.jvm.anabranch.FrameSource.Whole())
    kafka_source = kafka_builder.build()
    # `build` overwrites the property.
    kafka_builder.setProperty("value.deserializer", "anabranch.FrameSource$Views")
    source = gateway.jvm.anabranch.FrameSource(
        kafka_source,
        REQUEST_FRAME_RECORDS,
        REQUEST_FRAME_BYTES,
        _java_keys(keys_by_group),
        stay_in_process,
        _java_strings(headers),
        carries_keys,
        requests_topic,
    )
    return source_stream(env, source, name).uid(name)


def frame_elements(
    elements: DataStream, keys_by_group: Sequence[int], row_type: TypeInformation, flow: int, carried: bytes, name: str
) -> DataStream:
    """Return a stream of bytes as `Row(task key, frame)`; see `FrameElements.java`."""
    gateway = java_gateway()
    operator = gateway.jvm.anabranch.FrameElements(
        REQUEST_FRAME_RECORDS, REQUEST_FRAME_BYTES, _java_keys(keys_by_group), flow, carried
    )
    return DataStream(java_stream(elements).transform(name, row_type.get_java_type_info(), operator).uid(name))


def bytes_of_texts(texts: DataStream, bytes_type: TypeInformation) -> DataStream:
    """Return a stream of texts as UTF-8."""
    encode = java_gateway().jvm.anabranch.ElementValues.OfTexts()
    return DataStream(java_stream(texts).map(encode, bytes_type.get_java_type_info()))


def frames_of_rows(rows: DataStream, bytes_type: TypeInformation) -> DataStream:
    """Return `Row(key, value, carried)` as frames of one answer, without key and carried fields."""
    pack = java_gateway().jvm.anabranch.ElementValues.FrameOfRow()
    return DataStream(java_stream(rows).map(pack, bytes_type.get_java_type_info()))


def unpack_values(frames: DataStream, value_type: TypeInformation, *, as_texts: bool) -> DataStream:
    """Return the values in frames of answers."""
    unpack = java_gateway().jvm.anabranch.ElementValues.Unpack(as_texts)
    return DataStream(java_stream(frames).flatMap(unpack, value_type.get_java_type_info()))


def _java_keys(keys_by_group: Sequence[int]) -> Any:
    gateway = java_gateway()
    keys = gateway.new_array(gateway.jvm.int, len(keys_by_group))
    for group, key in enumerate(keys_by_group):
        keys[group] = key
    return keys


def to_readers(records: DataStream) -> DataStream:
    """Send each record to the reader that its ticket names; see `operators.core.transport.ticket`."""
    by_ticket = java_gateway().jvm.anabranch.ReaderPartitioner()
    return DataStream(java_stream(records).partitionCustom(by_ticket, by_ticket))


def unpack_answers(frames: DataStream, row_type: TypeInformation, uid: str) -> DataStream:
    """Return the answers in frames as `Row(key, value, carried)`."""
    unpack = java_gateway().jvm.anabranch.UnpackAnswers()
    return DataStream(java_stream(frames).flatMap(unpack, row_type.get_java_type_info()).name("unpack").uid(uid))


def record_writer(
    topic: str, admin_properties: Mapping[str, str], *, replies: bool, reply_topics: Sequence[str] = ()
) -> Any:
    """Return a sink's serializer."""
    gateway = java_gateway()
    properties = gateway.jvm.java.util.Properties()
    for name, value in admin_properties.items():
        properties.setProperty(name, value)
    return gateway.jvm.anabranch.RecordWriter(topic, replies, _java_strings(reply_topics), properties)


def _java_strings(values: Sequence[str]) -> Any:
    gateway = java_gateway()
    array = gateway.new_array(gateway.jvm.java.lang.String, len(values))
    for index, value in enumerate(values):
        array[index] = value
    return array
