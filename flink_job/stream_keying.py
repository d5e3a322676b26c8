"""Ways from operator to operator that PyFlink would put a Python operator of its own in.

Its `key_by` computes the key in one, and its `get_side_output` has one that hands on what it gets. Our operators emit
the key themselves, so Flink can read it off the row, and what they emit on the side has its type already. PyFlink has
no calls for that, so these go through its Java gateway.
"""

from typing import Any

from pyflink.common import TypeInformation, Types
from pyflink.datastream import DataStream, KeyedStream, OutputTag
from pyflink.java_gateway import get_gateway

VALUE_TYPE = Types.PRIMITIVE_ARRAY(Types.BYTE())


def exchange_by_key(stream: DataStream, key_type: TypeInformation) -> KeyedStream:
    """Sends every `Row(key, bytes)` over the network to the task that its key belongs to."""
    gateway: Any = get_gateway()
    java_key_type = Types.ROW([key_type]).get_java_type_info()
    java_stream = stream._j_data_stream.keyBy(gateway.jvm.KeyByKeySelector(), java_key_type)
    return KeyedStream(java_stream, VALUE_TYPE, stream)


def keep_by_key(stream: DataStream, key_type: TypeInformation) -> KeyedStream:
    """Keys `Row(key, bytes)` where it is: every key must belong to the task that emits it (see `keys_by_group`)."""
    gateway: Any = get_gateway()
    java_key_type = Types.ROW([key_type]).get_java_type_info()
    java_stream = gateway.jvm.org.apache.flink.streaming.api.datastream.DataStreamUtils.reinterpretAsKeyedStream(
        stream._j_data_stream, gateway.jvm.KeyByKeySelector(), java_key_type
    )
    return KeyedStream(java_stream, VALUE_TYPE, stream)


def side_output(stream: DataStream, tag: OutputTag) -> DataStream:
    """What an operator emits with a tag."""
    return DataStream(stream._j_data_stream.getSideOutput(tag.get_java_output_tag()))


def keys_by_group(max_parallelism: int) -> tuple[int, ...]:
    """For every key group, an INT key that Flink puts into it."""
    gateway: Any = get_gateway()
    row = gateway.jvm.org.apache.flink.types.Row
    assign = gateway.jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment.assignToKeyGroup
    keys: dict[int, int] = {}
    key = 0
    while len(keys) < max_parallelism:
        keys.setdefault(assign(_row(row, key), max_parallelism), key)
        key += 1
    return tuple(keys[group] for group in range(max_parallelism))


def _row(row: Any, key: int) -> Any:
    java_row = row(1)
    java_row.setField(0, key)
    return java_row
