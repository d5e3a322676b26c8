"""The job's two operators in Java, which Flink compiles where it runs them.

A crossing between Java and Python costs as much as all that the job does with a small request. PyFlink has no operator
that would let several records cross together, so these two pack what comes in into frames and unpack what goes out;
everything that decides anything is Python. Flink's SQL runtime compiles the operators that it generates with a compiler
of its own (Janino), from source that travels in the job graph; ours travel the same way, so there is no Java to build
or to install. Janino knows neither lambdas nor type arguments.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pyflink.common import TypeInformation, Types
from pyflink.datastream import DataStream
from pyflink.java_gateway import get_gateway

#: More at once would save nothing more: a crossing costs some 50 us, a request 10 or more.
_FRAME_RECORDS = 256
_FRAME_BYTES = 4 * 1024 * 1024


def pack_requests(rows: DataStream, keys_by_group: Sequence[int]) -> DataStream:
    """`RowData(value, partition, offset, timestamp)` -> `Row(lane, frame)`, the frame as in `schemas.frames`.

    Args:
        keys_by_group: See `operators.core.lanes`.
    """
    gateway: Any = get_gateway()
    keys = gateway.new_array(gateway.jvm.int, len(keys_by_group))
    for group, key in enumerate(keys_by_group):
        keys[group] = key
    row_type = Types.ROW([Types.INT(), Types.PRIMITIVE_ARRAY(Types.BYTE())])
    return _transform(rows, "PackRequests", row_type, _FRAME_RECORDS, _FRAME_BYTES, keys)


def unpack_answers(frames: DataStream, row_type: TypeInformation) -> DataStream:
    """Frames of answers -> `Row(key, value)`.

    Args:
        row_type: PyFlink's type of the row.
    """
    return _transform(frames, "UnpackAnswers", row_type)


def _transform(stream: DataStream, class_name: str, output_type: TypeInformation, *references: Any) -> DataStream:
    gateway: Any = get_gateway()
    flink = gateway.jvm.org.apache.flink
    java_references = gateway.new_array(gateway.jvm.java.lang.Object, len(references))
    for index, reference in enumerate(references):
        java_references[index] = reference
    source = files(__name__).joinpath(f"{class_name}.java").read_text()
    generated = flink.table.runtime.generated.GeneratedOperator(
        class_name, source, java_references, flink.configuration.Configuration()
    )
    java_stream = stream._j_data_stream
    transformation = flink.streaming.api.transformations.OneInputTransformation(
        java_stream.getTransformation(),
        class_name,
        flink.table.runtime.operators.CodeGenOperatorFactory(generated),
        output_type.get_java_type_info(),
        java_stream.getParallelism(),
    )
    env = java_stream.getExecutionEnvironment()
    env.addOperator(transformation)
    return DataStream(flink.streaming.api.datastream.DataStream(env, transformation))
