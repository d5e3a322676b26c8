"""The contract with PyFlink 2.3 and Beam; each docstring names the damage to the job if its test fails.

`tests/flink/test_flink_compat.py` tests the part that needs a JVM.
"""

import inspect
import pickle
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import data_plane, statesampler
from apache_beam.utils.counters import CounterFactory
from pyflink.common import Configuration, JobClient, Row
from pyflink.datastream import DataStream, KeyedStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer
from pyflink.fn_execution.coders import BinaryCoder, CharCoder, RowCoder
from pyflink.fn_execution.datastream.process import runtime_context as process_context
from pyflink.fn_execution.metrics.process.metric_impl import GenericMetricGroup
from pyflink.metrics import MetricGroup

from anabranch.operators.runtime import flink_compat
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_types import KAFKA_ROW, PARTS

ROOT = Path(__file__).parents[2]
ROWS = [(b"key", b"value"), (b"", b""), (b"\0" * 300, bytes(70_000))]


@pytest.mark.parametrize(("key", "value"), ROWS)
def test_keyed_row_has_the_fields_of_row(key: bytes, value: bytes) -> None:
    """Otherwise operators emit rows that lack what PyFlink's coders read."""
    assert KeyedRow(key, value).__dict__ == Row(key, value).__dict__
    assert list(KeyedRow(key, value)) == list(Row(key, value))
    assert KeyedRow(key, value).get_row_kind() == Row(key, value).get_row_kind()
    assert pickle.loads(pickle.dumps(KeyedRow(key, value))) == Row(key, value)


@pytest.mark.parametrize(("key", "value"), ROWS)
@pytest.mark.parametrize("row_type", [KAFKA_ROW, PARTS], ids=["for Kafka", "parts"])
def test_keyed_row_is_encoded_like_row(row_type: Any, key: bytes, value: bytes) -> None:
    """Otherwise process mode sends other bytes to Java: answers and parts under wrong keys."""
    name = key.decode() if row_type is PARTS else key
    key_coder = CharCoder() if row_type is PARTS else BinaryCoder()
    values = [name, value] if row_type is PARTS else [name, value, b"carried"]
    coders = [key_coder, *[BinaryCoder() for _ in values[1:]]]
    coder = RowCoder(coders, [f"f{index}" for index in range(len(values))]).get_impl()
    encoded = coder.encode(KeyedRow(*values))
    assert encoded == coder.encode(Row(*values))
    assert list(coder.decode(encoded)) == values


def test_keyed_row_sets_no_attribute_that_row_lacks() -> None:
    """Otherwise a field that PyFlink renames is set in vain."""
    assert set(KeyedRow(b"k", b"v").__dict__) == {"_values", "_from_dict", "_row_kind"}


def test_thread_mode_context_holds_the_java_context() -> None:
    """Otherwise tasks know neither their index nor that they run in the JVM. (Only the JVM can import its class.)"""
    source = Path(inspect.getfile(process_context)).parents[1] / "embedded" / "runtime_context.py"
    assert "self._runtime_context = runtime_context" in source.read_text()
    java = Mock()
    assert flink_compat.java_runtime_context(Mock(_runtime_context=java)) is java


@pytest.mark.parametrize(("attempt_id", "execution"), [("1f_2e_0_3", "1f"), (None, "")])
def test_execution_graph_is_the_start_of_the_attempt_id(attempt_id: str | None, execution: str) -> None:
    """Otherwise memory of a lost JobManager's tasks stays."""
    java = Mock()
    java.getMetricGroup().getAllVariables().get.side_effect = {"<task_attempt_id>": attempt_id}.get
    assert flink_compat.execution_graph_of(java) == execution


def test_process_mode_context_has_no_java_context() -> None:
    """Otherwise process mode is taken for thread mode, and calls Java where there is none."""
    made = process_context.StreamingRuntimeContext
    context = made(*([Mock()] * len(inspect.signature(made).parameters)))
    assert flink_compat.java_runtime_context(context) is None


def test_process_mode_groups_are_known_by_their_class() -> None:
    """Otherwise counts of process mode that are made during timers are lost."""
    group = GenericMetricGroup(None, None)
    assert flink_compat.counts_through_beam(group)
    assert flink_compat.counts_through_beam(group.add_group("model", "a"))
    assert not flink_compat.counts_through_beam(Mock(spec=MetricGroup))


def test_process_mode_counter_counts_in_a_kept_container() -> None:
    """Otherwise counts of process mode that are made during timers are lost: Beam itself has no container then."""
    assert statesampler.get_current_tracker() is None
    assert flink_compat.current_metrics_container() is None
    container = MetricsContainer("serve")
    counter = GenericMetricGroup(None, None).add_group("model", "a").counter("requests")
    flink_compat.counter_in(container, counter).inc(3)
    flink_compat.counter_in(container, counter).inc(2)
    [(name, value)] = container.get_cumulative().counters.items()
    assert (name.metric.name, value) == ("requests", 5)
    assert name.metric.namespace == '["model", "a", "MetricGroupType.key", "MetricGroupType.value"]'


def test_process_mode_counter_is_reported_only_after_counts() -> None:
    """Otherwise each bundle encodes all counters of its operator, which takes longer than its records."""
    container = MetricsContainer("serve")
    counter = GenericMetricGroup(None, None).add_group("model", "a").counter("requests")
    cell = flink_compat.counter_in(container, counter)
    reported = []
    for count in (3, 0, 2):
        cell.inc(count)
        reported.append([info.payload for info in container.to_runner_api_monitoring_infos("step").values()])
        container.reset()
    assert reported == [[b"\x03"], [], [b"\x02"]]


@pytest.fixture
def overlapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam's worker as in process mode; as before after the test."""
    for owner, names in (
        (data_plane._GrpcDataChannel, ("output_stream", "input_elements")),
        (statesampler.StateSampler, ("start", "stop")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))
    flink_compat.overlap_bundles()


@pytest.mark.usefixtures("overlapped")
def test_bundle_starts_no_sampling_thread() -> None:
    """Otherwise each bundle ends 2 ms later, or a fifth of its time."""
    sampler, before = statesampler.StateSampler("a bundle", CounterFactory()), threading.active_count()
    for _ in range(2):
        sampler.start()
        assert statesampler.get_current_tracker() is sampler
        assert threading.active_count() == before
        sampler.stop_if_still_running()
        assert statesampler.get_current_tracker() is None
        sampler.reset()


def test_sampler_that_has_a_thread_ends_it(request: pytest.FixtureRequest) -> None:
    """Otherwise a bundle that was under way when the operator opened leaves a thread, and a tracker."""
    sampler, before = statesampler.StateSampler("a bundle", CounterFactory()), threading.active_count()
    sampler.start()
    request.getfixturevalue("overlapped")
    sampler.stop_if_still_running()
    assert statesampler.get_current_tracker() is None
    assert threading.active_count() == before


@pytest.mark.usefixtures("overlapped")
def test_outputs_leave_with_each_part_of_a_bundle() -> None:
    """Otherwise Java waits for the last answer of a bundle before it takes the first."""
    channel = data_plane.GrpcClientDataChannel.__new__(data_plane.GrpcClientDataChannel)
    data_plane._GrpcDataChannel.__init__(channel)
    parts = [beam_fn_api_pb2.Elements.Data(instruction_id="1", transform_id="t", data=b"ab")] * 2
    last = beam_fn_api_pb2.Elements.Data(instruction_id="1", transform_id="t", is_last=True)
    for part in (*parts, last):
        channel._receiving_queue("1").put(part)
    stream, sent = channel.output_stream("1", "out"), []
    for number, _ in enumerate(channel.input_elements("1", ["t"])):
        stream.write(bytes(100_000 if number == 0 else 100), False)
        sent.append(channel._to_send.qsize())
    stream.close()
    assert sent == [0, 1], "the first part's outputs"
    assert [len(channel._to_send.get().data) for _ in range(2)] == [100_000, 100]
    assert not flink_compat._outputs_of


def test_current_container_is_that_of_the_running_element() -> None:
    """Otherwise process mode counts nothing at all."""
    container = MetricsContainer("serve")
    statesampler.set_current_tracker(tracker := Mock())
    try:
        tracker.current_state.return_value.metrics_container = container
        assert flink_compat.current_metrics_container() is container
    finally:
        statesampler.set_current_tracker(None)


def test_wrappers_hold_their_java_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the job cannot be built: its Java classes have no Python side."""
    java: Any = Mock()
    monkeypatch.setattr(StreamExecutionEnvironment, "_open", Mock())
    assert flink_compat.java_stream(DataStream(java)) is java
    assert flink_compat.java_stream(KeyedStream(java, None, Mock())) is java
    assert flink_compat.java_initializer(KafkaOffsetsInitializer(java)) is java
    assert StreamExecutionEnvironment(java)._j_stream_execution_environment is java
    assert Configuration(j_configuration=java)._j_configuration is java
    assert JobClient(java)._j_job_client is java


def test_worker_mode_process_starts_no_loopback_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise process mode on a MiniCluster runs its workers as threads of the client, and its tests test that."""
    is_local, configuration = Mock(return_value=True), Mock()
    monkeypatch.setattr("pyflink.datastream.stream_execution_environment.is_local_deployment", is_local)
    monkeypatch.setattr("pyflink.datastream.stream_execution_environment.get_j_env_configuration", configuration)
    monkeypatch.setenv("_python_worker_execution_mode", "another")
    with pytest.raises(ValueError, match="unknown mode 'another'"):
        StreamExecutionEnvironment(Mock())
    flink_compat.use_worker_processes()
    StreamExecutionEnvironment(Mock())
    is_local.assert_not_called()


def test_only_flink_compat_uses_internals() -> None:
    """Otherwise an upgrade breaks modules that no test of this file covers."""
    found = []
    for folder in ("operators", "flink_job"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            hits = [
                word for word in ("pyflink.fn_execution", "apache_beam", "pyflink.java_gateway", "._j_") if word in text
            ]
            if hits and path.name != "flink_compat.py":
                found.append((path.relative_to(ROOT), hits))
    assert found == []
