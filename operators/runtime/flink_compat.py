"""All uses of PyFlink and Beam internals, each with a contract test in `test_flink_compat.py`."""

import os
import threading
from collections.abc import Iterator
from typing import Any

from apache_beam.metrics.cells import CounterCell
from apache_beam.metrics.execution import MetricsEnvironment, _TypedMetricName
from apache_beam.runners.worker.data_plane import _GrpcDataChannel
from apache_beam.runners.worker.statesampler import StateSampler, set_current_tracker
from py4j.java_gateway import JavaClass
from py4j.protocol import Py4JJavaError
from pyflink.common import CompletableFuture, Configuration, JobClient, Row, RowKind, TypeInformation, Types
from pyflink.datastream import DataStream, KeyedProcessFunction, KeyedStream, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaSinkBuilder
from pyflink.fn_execution.metrics.process.metric_impl import GenericMetricGroup
from pyflink.java_gateway import get_gateway, java_import
from pyflink.metrics import Counter, MetricGroup
from pyflink.table.types import DataType, _to_java_data_type
from pyflink.table.udf import ScalarFunction, UserDefinedScalarFunctionWrapper, _get_python_env
from pyflink.util.java_utils import to_jarray

_INSERT = RowKind.INSERT
#: Bytes of outputs that leave at once, as `OverlappedBundles.java` sends elements.
_LARGE = 1 << 16
_WORKER_MODE = "_python_worker_execution_mode"
#: PyFlink finds operators by their simple names.
_OWN_OPERATORS = ("anabranch.ExternalPythonProcessOperator", "anabranch.ExternalPythonKeyedProcessOperator")


class CheckedFunction(UserDefinedScalarFunctionWrapper):
    """A vectorised function whose arguments are checked at planning, if our jar is there.

    Args:
        forms: See `CheckedFunction.java`.
        expected: Describes them.
    """

    def __init__(
        self, function: ScalarFunction, result_type: DataType, name: str, forms: list[str], expected: str
    ) -> None:
        super().__init__(function, None, result_type, "pandas", None, name)
        self._forms = forms
        self._expected = expected

    def _create_judf(self, serialized_func: bytes, j_input_types: Any, j_function_kind: Any) -> Any:
        gateway = get_gateway()
        checked = gateway.jvm.anabranch.CheckedFunction
        if not isinstance(checked, JavaClass):
            return super()._create_judf(serialized_func, j_input_types, j_function_kind)
        forms = to_jarray(gateway.jvm.String, self._forms)
        result = _to_java_data_type(self._result_type)
        return checked(self._name, bytearray(serialized_func), result, _get_python_env(), forms, self._expected)


class KeyedRow(Row):
    """`Row(key, value, …)` without the slow checks of `Row.__setattr__`."""

    def __init__(self, *values: object) -> None:
        fields = self.__dict__
        fields["_values"] = list(values)
        fields["_from_dict"] = False
        fields["_row_kind"] = _INSERT


def java_runtime_context(context: RuntimeContext) -> Any | None:
    """Return the Java context of thread mode, None in process mode."""
    return getattr(context, "_runtime_context", None)


def execution_graph_of(java_context: Any) -> str:
    """Return the random id of the job's execution graph: a JobManager that takes over draws another."""
    attempt_id: str | None = java_context.getMetricGroup().getAllVariables().get("<task_attempt_id>")
    return (attempt_id or "").partition("_")[0]


def counts_through_beam(group: MetricGroup) -> bool:
    """Tell process mode."""
    return isinstance(group, GenericMetricGroup)


def current_metrics_container() -> Any | None:
    """Return Beam's counters; None during timers."""
    return MetricsEnvironment.current_container()


class _RareCounter(CounterCell):
    """A counter that Beam encodes only if it counted."""

    def to_runner_api_monitoring_info(self, name: Any, transform_id: str) -> Any | None:
        """Return None for 0."""
        return super().to_runner_api_monitoring_info(name, transform_id) if self.value else None


def counter_in(container: Any, counter: Counter) -> Any:
    """Return a counter's cell, which timers can use."""
    name = _TypedMetricName(CounterCell, counter._inner_counter.metric_name)
    return container.metrics.setdefault(name, _RareCounter())


_output_stream, _input_elements = _GrpcDataChannel.output_stream, _GrpcDataChannel.input_elements
_stop_sampling = StateSampler.stop
#: Output streams by bundle.
_outputs_of: dict[str, list[Any]] = {}


class _OverlappedChannel:
    """Methods of a data channel that sends outputs after each part of its input."""

    def output_stream(self, instruction_id: str, transform_id: str) -> Any:
        stream = _output_stream(self, instruction_id, transform_id)
        _outputs_of.setdefault(instruction_id, []).append(stream)
        return stream

    def input_elements(self, instruction_id: str, *others: Any) -> Iterator[Any]:
        try:
            for part in _input_elements(self, instruction_id, *others):
                yield part
                for stream in _outputs_of.get(instruction_id, ()):
                    if stream.size() >= _LARGE:
                        stream.flush()
        finally:
            _outputs_of.pop(instruction_id, None)


class _NoSampler:
    """Methods of a sampler without a thread."""

    started: bool
    finished: bool

    def start(self) -> None:
        self.has_no_thread = True
        self.tracked_thread = threading.current_thread()
        set_current_tracker(self)
        self.started = True

    def stop(self) -> None:
        if not hasattr(self, "has_no_thread"):
            _stop_sampling(self)
            return
        set_current_tracker(None)
        self.finished = True


def overlap_bundles() -> None:
    """Have Beam's worker send outputs while it processes their bundle, and end the bundle at once.

    Beam keeps up to 10 MB until the end. Its sampler, whose times nothing reads, has a thread for each bundle, and
    waits for that: 2 ms, or up to a fifth of the time of the bundle.
    """
    _GrpcDataChannel.output_stream = _OverlappedChannel.output_stream
    _GrpcDataChannel.input_elements = _OverlappedChannel.input_elements
    StateSampler.start, StateSampler.stop = _NoSampler.start, _NoSampler.stop


def integer_key(context: KeyedProcessFunction.Context) -> int:
    """Return an integer key, which timers wrap in a row or tuple."""
    key: Any = context.get_current_key()
    number: int = key[0] if isinstance(key, Row | tuple) else key
    return number


def java_gateway() -> Any:
    """Return PyFlink's gateway."""
    return get_gateway()


def use_worker_processes() -> None:
    """Run MiniCluster's workers as processes."""
    os.environ[_WORKER_MODE] = "process"


def use_own_operators() -> None:
    """Make this project's operators in process mode: a cancelled one of PyFlink may end its TaskManager."""
    for name in _OWN_OPERATORS:
        java_import(java_gateway().jvm, name)


def remote_environment(host: str, port: int, options: dict[str, str]) -> StreamExecutionEnvironment:
    """Return a cluster's environment; PyFlink ignores the target."""
    gateway = java_gateway()
    settings = Configuration()
    for key, value in options.items():
        settings.set_string(key, value)
    no_jars = gateway.new_array(gateway.jvm.java.lang.String, 0)
    java_class = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    return StreamExecutionEnvironment(
        java_class.createRemoteEnvironment(host, port, settings._j_configuration, no_jars)
    )


def stop_with_savepoint(client: JobClient, savepoint_dir: str) -> CompletableFuture:
    """Begin to drain a job; return its savepoint. PyFlink omits the required format."""
    canonical = java_gateway().jvm.org.apache.flink.core.execution.SavepointFormatType.CANONICAL
    return CompletableFuture(client._j_job_client.stopWithSavepoint(True, savepoint_dir, canonical), str)


def root_cause(error: Py4JJavaError) -> str:
    """Return the first line of the innermost cause of a Java exception, or its class."""
    cause = error.java_exception
    while deeper := cause.getCause():
        cause = deeper
    return str(cause.getMessage() or cause.getClass().getName()).splitlines()[0]


def mini_cluster_url(client: JobClient) -> str:
    """Return the REST address of the MiniCluster that runs a job in this process; PyFlink hides it."""
    field = client._j_job_client.getClass().getDeclaredField("miniCluster")
    field.setAccessible(True)
    return str(field.get(client._j_job_client).getRestAddress().get().toString())


def pool_transactions(sink: KafkaSinkBuilder) -> None:
    """Reuse a few transactional ids, and end those of an earlier run; PyFlink makes new ones per checkpoint."""
    strategies = java_gateway().jvm.org.apache.flink.connector.kafka.sink.TransactionNamingStrategy
    sink._j_builder.setTransactionNamingStrategy(strategies.POOLING)


def set_record_writer(sink: KafkaSinkBuilder, writer: Any) -> None:
    """Set a Java serializer; PyFlink takes its own only."""
    sink._j_builder.setRecordSerializer(writer)


def source_stream(env: StreamExecutionEnvironment, java_source: Any, name: str) -> DataStream:
    """Return a source's stream without watermarks."""
    no_watermarks = java_gateway().jvm.org.apache.flink.api.common.eventtime.WatermarkStrategy.noWatermarks()
    return DataStream(env._j_stream_execution_environment.fromSource(java_source, no_watermarks, name))


def java_stream(stream: DataStream) -> Any:
    """Return the Java stream."""
    return stream._j_data_stream


def follows_python(stream: DataStream) -> bool:
    """Tell whether a stream has Python operators."""
    is_python = java_gateway().jvm.org.apache.flink.python.util.PythonConfigUtil.isPythonDataStreamOperator
    return any(is_python(each) for each in java_stream(stream).getTransformation().getTransitivePredecessors())


def unkeyed(stream: DataStream) -> DataStream:
    """Return the stream that a keyed one was made of; its elements need no exchange then."""
    return stream._origin_stream if isinstance(stream, KeyedStream) else stream


def java_initializer(offsets: Any) -> Any:
    """Return the Java object."""
    return offsets._j_initializer


def keyed_by_first_field(
    stream: DataStream, key_type: TypeInformation, value_type: TypeInformation, *, in_place: bool
) -> KeyedStream:
    """Key a stream of `Row(key, value)` without the Python operator of `key_by`.

    Args:
        in_place: Records stay in their task.
    """
    gateway = java_gateway()
    selector, java_key_type = gateway.jvm.KeyByKeySelector(), Types.ROW([key_type]).get_java_type_info()
    if in_place:
        utils = gateway.jvm.org.apache.flink.streaming.api.datastream.DataStreamUtils
        keyed = utils.reinterpretAsKeyedStream(java_stream(stream), selector, java_key_type)
    else:
        keyed = java_stream(stream).keyBy(selector, java_key_type)
    return KeyedStream(keyed, value_type, stream)
