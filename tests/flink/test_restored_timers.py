"""Requests that wait in a savepoint wake their task after it is restored, although no request comes after them.

In process mode the bundle of these requests ends with the savepoint: their timers must be in it, like their state.
"""

import time
from pathlib import Path

import pytest

from anabranch.jobs.control import JobControl
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.service import Topics
from tests.flink.test_restart import PATIENT, check_answers, configured, newest, send, start

#: Includes a split request.
NUMBERS = range(15, 24)
#: Bundles end with checkpoints only, and these are the test's.
LONG_BUNDLES = {"python.fn-execution.bundle.time": "3600000", "python.fn-execution.bundle.size": "1000000"}
NEVER_MS = 3_600_000


@pytest.mark.recovery
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", MODES)
def test_restored_requests_need_no_new_one(
    broker: KafkaBroker, cluster: FlinkCluster, tmp_path: Path, mode: str
) -> None:
    config = configured(tmp_path, mode, "at-least-once", "timers", parallelism=1, checkpoint_interval_ms=NEVER_MS)
    model = tmp_path / "models" / "double" / "model.toml"
    model.write_text(PATIENT.replace("8000", "2000"))
    topics, control = Topics(broker, config.replace(job={"flink": LONG_BUNDLES})), JobControl(cluster.rest)
    running = start(topics, cluster)
    send(topics, NUMBERS)
    await_read(cluster, running.job_id, len(NUMBERS))
    control.stop(control.find(running.job_id))
    topics.config = topics.config.replace(job={"flink": {}})
    running = start(topics, cluster, newest(topics))
    check_answers(topics, NUMBERS, timeout_s=60)
    running.cancel()
    topics.close()


def await_read(cluster: FlinkCluster, job_id: str, count: int) -> None:
    """Waits until the source has read that many records."""
    end = time.monotonic() + 90
    while True:
        sums = cluster.rest.sums(job_id, lambda names: [each for each in names if each.endswith(".numRecordsIn")])
        if any(name.startswith("Source__") and value >= count for name, value in sums.items()):
            return
        assert time.monotonic() < end, f"records were not read: {sums}"
        time.sleep(0.2)
