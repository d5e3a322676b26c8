"""Heap and RocksDB as the state of a job: `python -m tests.chaos.state_backends`.

Measures the rate of split requests, which open a window each, and then checkpoints while requests wait in the queue.
"""

import argparse
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import Producer

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.chaos.endurance_engine import SplitRequests
from tests.chaos.models import SMALL_INPUTS, write_models
from tests.chaos.stand import LETTERS, PARTITIONS, REQUESTS, RESPONSES

BACKENDS = {
    "heap": {"state.backend.type": "hashmap"},
    "RocksDB": {"state.backend.type": "rocksdb", "execution.checkpointing.incremental": "true"},
}
#: Longer than a run: requests wait for a batch that never fills.
NEVER_MS = 3_600_000
ROWS = 1_000
CHECKPOINTS = 10


class BackendResult(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one state backend.

    Attributes:
        rate_per_s: Split requests a second, as fast as they are answered.
        waiting_mb: Size of the requests that wait.
        checkpoint_mb: Bytes that a checkpoint writes meanwhile, the median.
        checkpoint_ms: Time that it takes, the median.
    """

    backend: str
    rate_per_s: float
    waiting_mb: float
    checkpoint_mb: float
    checkpoint_ms: float


def measure(backend: str, mode: str, requests: int, waiting: int, folder: Path) -> BackendResult:
    """Measures one state backend."""
    write_models(folder / "models", generation=0)
    (folder / "models" / "small" / "model.toml").write_text(
        f"[batching]\nmax_delay_ms = {NEVER_MS}\nmax_rows = 100000000\nshard_rows = 100000000\n"
    )
    config = Config().replace(
        job={
            "execution_mode": mode,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (folder / "checkpoints").as_uri(),
            "flink": BACKENDS[backend],
        },
        kafka={"requests_topic": REQUESTS, "responses_topic": RESPONSES, "errors_topic": LETTERS},
        scheduling={"max_waiting_bytes": 2**30, "no_deadline_ms": float(NEVER_MS)},
        models={"repository": str(folder / "models")},
    )
    with KafkaBroker(folder / "kafka") as broker, FlinkCluster(folder / "flink", 2, slots=2) as cluster:
        broker.create_topics(Topic(REQUESTS, PARTITIONS, {}), Topic(RESPONSES, 1, {}), Topic(LETTERS, 1, {}))
        running = job.start(config.replace(kafka={"bootstrap_servers": broker.bootstrap_servers}), cluster.url)
        with SplitRequests(broker.bootstrap_servers) as load:
            # The first ones wait for the models to load.
            while load.answers < requests // 5:
                load.send(requests // 5)
            start_s, before = time.monotonic(), load.answers
            while load.answers < requests:
                load.send(requests)
            rate_per_s = (load.answers - before) / (time.monotonic() - start_s)
        size = _send_waiting(broker.bootstrap_servers, waiting)
        taken = _checkpoints(cluster, running.job_id)
        running.cancel()
    return BackendResult(
        backend=backend,
        rate_per_s=round(rate_per_s),
        waiting_mb=round(size / 2**20, 1),
        checkpoint_mb=round(float(np.median([size for size, _ in taken])) / 2**20, 2),
        checkpoint_ms=float(np.median([ms for _, ms in taken])),
    )


def _send_waiting(servers: str, count: int) -> int:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5})
    rows = np.zeros((ROWS, SMALL_INPUTS), np.float32)
    size = 0
    for number in range(count):
        value = codec.encode_request(InferRequest("small", (Tensor.from_array("x", rows),), f"waiting-{number}"))
        producer.produce(REQUESTS, key=str(number), value=value)
        producer.poll(0)
        size += len(value)
    producer.flush(60)
    return size


def _checkpoints(cluster: FlinkCluster, job_id: str) -> list[tuple[int, int]]:
    """Returns bytes written and milliseconds of the last checkpoints, once the requests have long been read."""
    path = f"/jobs/{job_id}/checkpoints"
    first = cluster.rest.get(path)["counts"]["completed"] + 5
    taken: dict[int, tuple[int, int]] = {}
    while len(taken) < CHECKPOINTS:
        found = cluster.rest.get(path)
        latest = found["latest"]["completed"]
        if found["counts"]["completed"] > first:
            taken[latest["id"]] = latest["checkpointed_size"], latest["end_to_end_duration"]
        time.sleep(0.2)
    return list(taken.values())


def main() -> None:
    """Measures both and prints a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.state_backends", description=__doc__)
    parser.add_argument("--mode", choices=("thread", "process"), default="thread")
    parser.add_argument("--requests", type=int, default=10_000, help="split requests, of which a fifth is warm-up")
    parser.add_argument("--waiting", type=int, default=2_000, help="requests of 32 KB that wait")
    arguments = parser.parse_args()
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory(prefix="backends-") as folder:
            result = measure(backend, arguments.mode, arguments.requests, arguments.waiting, Path(folder))
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
