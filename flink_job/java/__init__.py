"""The job's two operators in Java, which Flink compiles where it runs them.

A crossing between Java and Python costs as much as all that the job does with a small request. PyFlink has no operator
that would let several records cross together, so these two pack what comes in into frames and unpack what goes out;
everything that decides anything is Python. Flink's SQL runtime compiles the operators that it generates with a compiler
of its own (Janino), from source that travels in the job graph; ours travel the same way, so there is no Java to build
or to install. Janino knows neither lambdas nor type arguments.
"""

from importlib.resources import files
from typing import Any

from pyflink.datastream import DataStream
from pyflink.java_gateway import get_gateway


def pack_requests(rows: DataStream, max_records: int, max_bytes: int) -> DataStream:
    """`RowData(value, partition, offset, timestamp)` -> frames of Kafka records; see `schemas.frames`.

    Args:
        max_records: The most that a frame holds.
        max_bytes: The same, unless a single record has more.
    """
    return _transform(rows, "PackRequests", _byte_array(), max_records, max_bytes)


def unpack_answers(frames: DataStream, row_type: Any) -> DataStream:
    """Frames of answers -> `Row(key, value)`.

    Args:
        row_type: PyFlink's type of the row.
    """
    return _transform(frames, "UnpackAnswers", row_type.get_java_type_info())


def _byte_array() -> Any:
    gateway: Any = get_gateway()
    return gateway.jvm.org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO


def _transform(stream: DataStream, class_name: str, java_type: Any, *references: int) -> DataStream:
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
        java_type,
        java_stream.getParallelism(),
    )
    env = java_stream.getExecutionEnvironment()
    env.addOperator(transformation)
    return DataStream(flink.streaming.api.datastream.DataStream(env, transformation))
