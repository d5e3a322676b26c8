"""The job's Java: what makes frames of the records that come in, and unpacks the answers that go out.

A crossing between Java and Python costs as much as all that the job does with a small request, and so does a record's
way through a Flink task. PyFlink has nothing that would let several records travel together, so these classes do;
everything that decides anything is Python.

    Kafka --> [ FrameSource ] -- frames --> Python -- frames --> [ UnpackAnswers ] --> Kafka

They have to be on the class path of the client and of the cluster: `anabranch.flink_job.installation.java_jar`.
"""

from collections.abc import Sequence
from typing import Any

from pyflink.common import TypeInformation
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway

#: More at once saves nothing: a crossing costs some 50 us, a request 10 or more. With 1,024 a third less is served, for
#: their bytes then leave the processor's caches between Java and Python. So do those of 4 MiB of large requests: with
#: 32 rows in each, what was served then varied twofold from run to run.
_FRAME_RECORDS = 256
_FRAME_BYTES = 1024 * 1024


def read_frames(
    env: StreamExecutionEnvironment,
    kafka_builder: Any,
    keys_by_group: Sequence[int],
    name: str,
    *,
    stay_in_process: bool,
) -> DataStream:
    """All requests of a Kafka source as `Row(lane, frame)`, the frame as in `anabranch.schemas.frames`.

    Args:
        kafka_builder: Flink's, in Java; all but the deserializer is set.
        keys_by_group: See `anabranch.operators.core.scheduling.key_groups`.
        stay_in_process: Whether Python runs in Java's process, so that large frames may stay where they are written.
    """
    gateway: Any = get_gateway()
    flink = gateway.jvm.org.apache.flink
    keys = gateway.new_array(gateway.jvm.int, len(keys_by_group))
    for group, key in enumerate(keys_by_group):
        keys[group] = key
    kafka_builder.setDeserializer(gateway.jvm.anabranch.FrameSource.Whole())
    kafka_source = kafka_builder.build()
    # `build` sets Kafka's own, whatever it was told; the source keeps the builder's properties.
    kafka_builder.setProperty("value.deserializer", "anabranch.FrameSource$Views")
    source = gateway.jvm.anabranch.FrameSource(kafka_source, _FRAME_RECORDS, _FRAME_BYTES, keys, stay_in_process)
    no_watermarks = flink.api.common.eventtime.WatermarkStrategy.noWatermarks()
    return DataStream(env._j_stream_execution_environment.fromSource(source, no_watermarks, name))


def unpack_answers(frames: DataStream, row_type: TypeInformation) -> DataStream:
    """Frames of answers -> `Row(key, value)`.

    Args:
        row_type: PyFlink's type of the row.
    """
    unpack = get_gateway().jvm.anabranch.UnpackAnswers()
    return DataStream(frames._j_data_stream.flatMap(unpack, row_type.get_java_type_info()).name("unpack"))
