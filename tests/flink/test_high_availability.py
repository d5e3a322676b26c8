"""Two JobManagers and ZooKeeper: the leader is killed amid requests, and the other goes on with the same job.

requests     |---- 120 ----|--- 120 ---|
JobManagers  |--- leader --- X
             |--- standby -----| elected: restores the last checkpoint |--- all answers, none doubled
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from anabranch.flink_job.installation import find_java, flink_lib_dir
from anabranch.stack.errors import StackError
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.ports import LOOPBACK, answers, free_port
from anabranch.stack.service import Service, ServiceGroup
from tests.flink.conftest import MODES
from tests.flink.service import Topics
from tests.flink.test_restart import COUNT, check_answers, configured, send, send_and_stop_amid, start

SERVER = "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.ZooKeeperServerMain"


class ZooKeeper(ServiceGroup):
    """The server that Flink's distribution brings."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tied=True, ready_timeout_s=60, stop_grace_s=5)
        self._folder = folder
        self.port = free_port()

    def _describe(self) -> Iterator[Service]:
        [jar] = flink_lib_dir().glob("flink-dist-*.jar")
        log = str(self._folder / "zookeeper.log")
        yield Service(
            name="zookeeper",
            command=[
                *(
                    str(find_java() / "bin" / "java"),
                    "-Xmx128m",
                    "-Dzookeeper.admin.enableServer=false",
                    "-cp",
                    str(jar),
                ),
                *(SERVER, str(self.port), str(self._folder / "data")),
            ],
            directory=str(self._folder),
            log_path=log,
            out_path=log,
        )

    def _is_ready(self, name: str) -> bool:
        return answers(self.port)


def ha_settings(zookeeper: ZooKeeper, folder: Path) -> Mapping[str, str]:
    """The settings of `docs/how-to/high-availability.md`."""
    return {
        "high-availability.type": "zookeeper",
        "high-availability.zookeeper.quorum": f"{LOOPBACK}:{zookeeper.port}",
        "high-availability.storageDir": (folder / "high-availability").as_uri(),
        "high-availability.cluster-id": "anabranch",
        "high-availability.zookeeper.client.session-timeout": "10 s",
    }


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_killed_leader_leaves_the_job_to_its_standby(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    topics = Topics(broker, configured(tmp_path, mode, "exactly-once", "leader"))
    with ZooKeeper(tmp_path / "zookeeper") as zookeeper:
        settings = ha_settings(zookeeper, tmp_path)
        with (
            FlinkCluster(tmp_path / "leader", task_managers=2, settings=settings) as leader,
            FlinkCluster(tmp_path / "standby", task_managers=0, settings=settings) as standby,
        ):
            running = start(topics, leader)
            send_and_stop_amid(topics, leader, running, range(COUNT))
            assert leader.rest.get(f"/jobs/{running.job_id}/checkpoints")["counts"]["restored"] == 0

            leader.job_manager.kill()
            send(topics, range(COUNT, 2 * COUNT))
            await_restored(standby, running.job_id)
            check_answers(topics, range(2 * COUNT))
            topics.check_repeated("exactly-once")
            [job] = standby.rest.jobs()
            assert (job.job_id, job.state) == (running.job_id, "RUNNING")
            standby.rest.cancel(job.job_id)
    topics.close()


def await_restored(cluster: FlinkCluster, job_id: str) -> None:
    """Waits until a JobManager that was no leader has restored the job."""
    end = time.monotonic() + 180
    while True:
        assert time.monotonic() < end, "the standby does not go on with the job"
        try:
            if cluster.rest.get(f"/jobs/{job_id}/checkpoints")["counts"]["restored"] == 1:
                return
        except StackError:
            # It is being elected.
            pass
        time.sleep(0.5)
