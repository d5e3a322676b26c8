import importlib
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from pyflink.common import Configuration, Types
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway

from anabranch.flink_job.installation import activate, python_settings
from anabranch.stack.errors import StackError, StartFailed
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.flink.rest import FlinkRest
from tests.stack.test_kafka_broker import listening_addresses


def remote(url: str, mode: str) -> StreamExecutionEnvironment:
    activate()
    gateway: Any = get_gateway()
    options = Configuration()
    for key, value in {**python_settings(), "python.execution-mode": mode}.items():
        options.set_string(key, value)
    host, port = url.removeprefix("http://").split(":")
    environments = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    no_jars = gateway.new_array(gateway.jvm.java.lang.String, 0)
    return StreamExecutionEnvironment(
        environments.createRemoteEnvironment(host, int(port), options._j_configuration, no_jars)
    )


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = monotonic() + 30
    while not condition():
        assert monotonic() < give_up_at, "in vain"
        sleep(0.1)


def process_id(_: int) -> int:
    # Packages of this project are importable.
    importlib.import_module("onnxruntime")
    return os.getpid()


# On a busy machine, workers of process mode need a minute to import Beam.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_cluster_python_job_runs_on_all_task_managers(cluster: FlinkCluster, mode: str) -> None:
    env = remote(cluster.url, mode)
    env.set_parallelism(2)
    numbers = env.from_collection(list(range(40)), Types.INT()).rebalance().map(process_id, Types.INT())
    with numbers.execute_and_collect("where am I") as results:
        pids = list(results)
    assert len(pids) == 40
    assert len(set(pids)) == 2
    if mode == "thread":
        assert set(pids) == {manager.pid for manager in cluster.task_managers.values()}


def test_cluster_processes_listen_on_loopback_only(cluster: FlinkCluster) -> None:
    for process in cluster.processes:
        assert listening_addresses(process.pid) == {"127.0.0.1"}


@pytest.mark.recovery
def test_cluster_lost_task_manager_is_replaced(cluster: FlinkCluster) -> None:
    lost = min(cluster.task_managers)
    cluster.kill_task_manager(lost)
    number = cluster.add_task_manager()
    assert number not in (lost, *list(cluster.task_managers)[:-1])
    assert f"task-manager-{number}" in cluster.rest.task_manager_ids()
    # A broken connection tells the JobManager long before a heartbeat is missed.
    wait_for(lambda: f"task-manager-{lost}" not in cluster.rest.task_manager_ids())


@pytest.mark.system
def test_cluster_too_little_memory_raises_flinks_reason(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"task-manager cannot be started with these settings: .*[Mm]emory"):
        FlinkCluster(tmp_path, 1, task_manager_memory_mb=300).start()


def test_flink_rest_without_cluster_names_the_remedy() -> None:
    with pytest.raises(StackError, match="start one with `anabranch up`"):
        FlinkRest("http://127.0.0.1:1").jobs()


def test_flink_rest_address_without_port_is_refused() -> None:
    with pytest.raises(StackError, match="write http://HOST:PORT"):
        FlinkRest("localhost")
