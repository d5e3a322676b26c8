"""A job with RocksDB and incremental checkpoints is killed with its cluster, and goes on from its newest checkpoint."""

from pathlib import Path

import pytest

from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import Topics
from tests.flink.test_restart import COUNT, check_answers, configured, newest, send_and_stop_amid, start

#: As in `docs/how-to/scale-out.md`.
ROCKSDB = {"state.backend.type": "rocksdb", "execution.checkpointing.incremental": "true"}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_rocksdb_job_killed_with_its_cluster_loses_nothing(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    topics = Topics(broker, configured(tmp_path, mode, "exactly-once", "rocksdb", flink=ROCKSDB))
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        running = start(topics, cluster)
        send_and_stop_amid(topics, cluster, running, range(COUNT))
        latest = cluster.rest.get(f"/jobs/{running.job_id}/checkpoints/config")
        assert latest["state_backend"] == "EmbeddedRocksDBStateBackend"
        cluster.kill()
        cluster.start()
        state = newest(topics)
        assert state.kind == "checkpoint"
        # Files that incremental checkpoints share.
        assert list(Path(state.path.removeprefix("file:")).parent.glob("shared/*"))
        running = start(topics, cluster, state)
        send_and_stop_amid(topics, cluster, running, range(COUNT, 2 * COUNT))
        check_answers(topics, range(2 * COUNT))
        topics.check_repeated("exactly-once")
        running.cancel()
    topics.close()
