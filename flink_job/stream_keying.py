"""`key_by` and `get_side_output` without the Python operators that PyFlink adds."""

from pyflink.common import TypeInformation, Types
from pyflink.datastream import DataStream, KeyedStream, OutputTag

from anabranch.operators.runtime.flink_compat import java_gateway, java_stream, keyed_by_first_field

VALUE_TYPE = Types.PRIMITIVE_ARRAY(Types.BYTE())


def exchange_by_key(stream: DataStream, key_type: TypeInformation) -> KeyedStream:
    """Send every `Row(key, bytes)` to the task of its key."""
    return keyed_by_first_field(stream, key_type, VALUE_TYPE, in_place=False)


def keep_by_key(stream: DataStream, key_type: TypeInformation) -> KeyedStream:
    """Key `Row(key, bytes)` in place; the key must belong to the emitting task."""
    return keyed_by_first_field(stream, key_type, VALUE_TYPE, in_place=True)


def side_output(stream: DataStream, tag: OutputTag) -> DataStream:
    """Return the records with a tag."""
    return DataStream(java_stream(stream).getSideOutput(tag.get_java_output_tag()))


def keys_by_group(max_parallelism: int) -> tuple[int, ...]:
    """Return one INT key of each key group."""
    flink = java_gateway().jvm.org.apache.flink
    row = flink.types.Row(1)
    assign = flink.runtime.state.KeyGroupRangeAssignment.assignToKeyGroup
    keys: dict[int, int] = {}
    key = 0
    while len(keys) < max_parallelism:
        row.setField(0, key)
        keys.setdefault(assign(row, max_parallelism), key)
        key += 1
    return tuple(keys[group] for group in range(max_parallelism))
