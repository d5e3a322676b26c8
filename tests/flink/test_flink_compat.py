"""The part of the contract with PyFlink 2.3 that needs a JVM; each docstring names the damage if its test fails."""

from typing import Any

import pytest
from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaSink

from anabranch.flink_job import installation, java
from anabranch.flink_job.stream_keying import exchange_by_key, keep_by_key, keys_by_group
from anabranch.operators.runtime import flink_compat
from anabranch.operators.runtime.flink_types import PARTS


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An environment in which nothing runs."""
    installation.activate()
    monkeypatch.setenv("_python_worker_execution_mode", "process")
    return StreamExecutionEnvironment.get_execution_environment()


@pytest.mark.parametrize(("keyed", "partitioner"), [(exchange_by_key, "HASH"), (keep_by_key, "FORWARD")])
def test_keyed_stream_needs_no_python_operator(
    env: StreamExecutionEnvironment, keyed: object, partitioner: str
) -> None:
    """Otherwise every record crosses into Python once more, to compute a key that it carries."""
    stream = env.from_collection([], PARTS)
    by_key = keyed(stream, Types.STRING())  # type: ignore[operator]
    transformation = flink_compat.java_stream(by_key).getTransformation()
    assert transformation.getInputs()[0].getId() == flink_compat.java_stream(stream).getTransformation().getId()
    assert transformation.getPartitioner().toString() == partitioner
    assert flink_compat.java_stream(by_key).getKeyType().toString() == "Row(f0: String)"


def test_keys_by_group_gives_one_key_to_each_group() -> None:
    """Otherwise a task's records belong to another task's key groups, and the job fails when it starts."""
    installation.activate()
    keys = keys_by_group(128)
    assert len(set(keys)) == 128
    gateway = flink_compat.java_gateway()
    assign = gateway.jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment.assignToKeyGroup
    row = gateway.jvm.org.apache.flink.types.Row(1)
    row.setField(0, keys[77])
    assert assign(row, 128) == 77


def test_attempt_id_begins_with_the_execution_graph() -> None:
    """Otherwise memory of a lost JobManager's tasks stays: their attempts look like those of its successor."""
    installation.activate()
    runtime = flink_compat.java_gateway().jvm.org.apache.flink.runtime
    graph = runtime.executiongraph.ExecutionGraphID()
    vertex = runtime.scheduler.strategy.ExecutionVertexID(runtime.jobgraph.JobVertexID(), 3)
    attempt = runtime.executiongraph.ExecutionAttemptID(graph, vertex, 7)
    assert attempt.toString().partition("_")[0] == graph.toString()
    assert runtime.metrics.scope.ScopeFormat.SCOPE_TASK_ATTEMPT_ID == "<task_attempt_id>"


def test_remote_environment_uses_the_given_cluster() -> None:
    """Otherwise `anabranch run` starts a MiniCluster of its own."""
    installation.activate()
    flink_compat.use_worker_processes()
    env = flink_compat.remote_environment("host.invalid", 8081, {"parallelism.default": "3"})
    java = env._j_stream_execution_environment
    assert java.getClass().getSimpleName() == "RemoteStreamEnvironment"
    assert (java.getHost(), java.getPort(), java.getParallelism()) == ("host.invalid", 8081, 3)


def test_job_client_takes_the_format_of_a_savepoint() -> None:
    """Otherwise a job cannot be drained."""
    installation.activate()
    jvm = flink_compat.java_gateway().jvm
    methods = jvm.Class.forName("org.apache.flink.core.execution.JobClient").getMethods()
    found = [str(each) for each in methods if each.getName() == "stopWithSavepoint"]
    assert any(
        "(boolean,java.lang.String,org.apache.flink.core.execution.SavepointFormatType)" in each for each in found
    )
    assert jvm.org.apache.flink.core.execution.SavepointFormatType.CANONICAL is not None


def test_sink_builder_takes_a_java_record_writer(env: StreamExecutionEnvironment) -> None:
    """Otherwise answers have neither headers nor reply addresses."""
    builder, writer = KafkaSink.builder(), java.record_writer("answers", {"bootstrap.servers": "a:1"}, replies=True)
    flink_compat.set_record_writer(builder, writer)
    assert builder.set_bootstrap_servers("a:1").build() is not None


def test_sink_builder_takes_the_pooled_names(env: StreamExecutionEnvironment) -> None:
    """Otherwise each checkpoint leaves new transactional ids at the broker, for a week."""
    builder = KafkaSink.builder()
    flink_compat.pool_transactions(builder)
    field = builder._j_builder.getClass().getDeclaredField("transactionNamingStrategy")
    field.setAccessible(True)
    assert field.get(builder._j_builder).toString() == "POOLING"


def test_process_operators_of_this_project_are_made(env: StreamExecutionEnvironment) -> None:
    """Otherwise a failover in process mode may end healthy TaskManagers (`CancellationSafeBundles.java`)."""
    flink_compat.use_own_operators()
    stream = keep_by_key(env.from_collection([], PARTS), Types.STRING()).process(_Nothing(), Types.STRING())
    for each, name in ((stream, "KeyedProcess"), (stream.process(_Nothing(), Types.STRING()), "Process")):
        operator = flink_compat.java_stream(each).getTransformation().getOperatorFactory().getOperator()
        assert operator.getClass().getName() == f"anabranch.ExternalPython{name}Operator"


def test_bundle_factories_are_in_the_known_fields() -> None:
    """Otherwise no task opens in process mode."""
    installation.activate()
    flink_compat.use_own_operators()
    by_name = flink_compat.java_gateway().jvm.Class.forName
    runners = "org.apache.flink.streaming.api.runners.python.beam"
    factory = "org.apache.beam.runners.fnexecution.control.JobBundleFactory"
    for owner in ("BeamPythonFunctionRunner", "PythonSharedResources"):
        assert by_name(f"{runners}.{owner}").getDeclaredField("jobBundleFactory").getType().getName() == factory
    lease = by_name(f"{runners}.BeamPythonFunctionRunner").getDeclaredField("sharedResources")
    assert lease.getType().getSimpleName() == "OpaqueMemoryResource"


def test_worker_is_in_the_known_fields() -> None:
    """Otherwise no task opens in process mode."""
    installation.activate()
    by_name = flink_compat.java_gateway().jvm.Class.forName
    control, data, environment = (
        f"org.apache.beam.runners.fnexecution.{part}" for part in ("control", "data", "environment")
    )
    runner = "org.apache.flink.streaming.api.runners.python.beam.BeamPythonFunctionRunner"
    fields = {
        (runner, "stageBundleFactory"): f"{control}.StageBundleFactory",
        (f"{control}.SdkHarnessClient", "fnApiDataService"): f"{data}.FnDataService",
        (f"{data}.GrpcDataService", "options"): "org.apache.beam.sdk.options.PipelineOptions",
        (f"{environment}.ProcessEnvironment", "workerId"): "java.lang.String",
        (f"{environment}.ProcessEnvironment", "processManager"): f"{environment}.ProcessManager",
        (f"{environment}.ProcessManager", "processes"): "java.util.Map",
    }
    for (owner, name), kind in fields.items():
        assert by_name(owner).getDeclaredField(name).getType().getName() == kind


class _Nothing(KeyedProcessFunction):  # type: ignore[misc]
    def process_element(self, value: object, ctx: object) -> None:
        pass
