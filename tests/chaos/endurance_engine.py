"""Memory and checkpoint size over split requests on a real cluster: `python -m tests.chaos.endurance_engine`.

producer --> broker --> one TaskManager with two slots --> broker --> counter, at most `IN_FLIGHT` requests ahead
                            resident memory, checkpoints
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.chaos.endurance import EnduranceSlice
from tests.chaos.models import write_models
from tests.chaos.stand import LETTERS, PARTITIONS, REQUESTS, RESPONSES

RESULT = Path(__file__).parent / "results" / "endurance-engine.json"
ROWS = 40
IN_FLIGHT = 2_000
_SAMPLE_S = 0.5


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run; `windows` and `timers` of its slices are not measured."""

    mode: str
    slices: list[EnduranceSlice]


def run(mode: str, requests: int, slices: int, folder: Path) -> EngineResult:
    """Sends split requests to a job, as fast as it answers them."""
    models = folder / "models"
    write_models(models, generation=0)
    config = Config().replace(
        job={
            "execution_mode": mode,
            "parallelism": 2,
            "checkpoint_interval_ms": 1000,
            "checkpoint_dir": (folder / "checkpoints").as_uri(),
        },
        kafka={"requests_topic": REQUESTS, "responses_topic": RESPONSES, "errors_topic": LETTERS},
        models={"repository": str(models)},
    )
    measured: list[EnduranceSlice] = []
    with KafkaBroker(folder / "kafka") as broker, FlinkCluster(folder / "flink", 1, slots=4) as cluster:
        broker.create_topics(Topic(REQUESTS, PARTITIONS, {}), Topic(RESPONSES, 1, {}), Topic(LETTERS, 1, {}))
        config = config.replace(kafka={"bootstrap_servers": broker.bootstrap_servers})
        running = job.start(config, cluster.url)
        [task_manager] = cluster.task_managers.values()
        with SplitRequests(broker.bootstrap_servers) as counter:
            for number in range(1, slices + 1):
                start_s, largest = time.monotonic(), 0
                until = requests * number // slices
                while counter.answers < until:
                    counter.send(until)
                    largest = max(largest, _checkpoint_bytes(cluster, running.job_id))
                measured.append(
                    EnduranceSlice(
                        requests=until,
                        answers=counter.answers,
                        seconds=round(time.monotonic() - start_s, 1),
                        checkpoint_bytes=largest,
                        windows=0,
                        timers=0,
                        memory_mb=round(_resident_mb(task_manager.pid), 1),
                    )
                )
                print(msgspec.json.encode(measured[-1]).decode(), flush=True)
        running.cancel()
    return EngineResult(mode=mode, slices=measured)


class SplitRequests:
    """Sends requests of 40 rows, and counts answers."""

    def __init__(self, servers: str) -> None:
        self.answers, self._sent = 0, 0
        self._producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "log_level": 0})
        self._consumer = Consumer({"bootstrap.servers": servers, "group.id": "counter", "log_level": 0})
        self._consumer.assign([TopicPartition(RESPONSES, 0, OFFSET_BEGINNING)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def send(self, until: int) -> None:
        """Keeps requests under way for a while."""
        end_s = time.monotonic() + _SAMPLE_S
        while time.monotonic() < end_s and self.answers < until:
            while self._sent < min(until, self.answers + IN_FLIGHT):
                rows = self._sent + np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
                request = InferRequest("double", (Tensor.from_array("x", rows),), str(self._sent))
                self._producer.produce(REQUESTS, key=str(self._sent), value=codec.encode_request(request))
                self._sent += 1
            self._producer.poll(0)
            self.answers += sum(message.error() is None for message in self._consumer.consume(5_000, 0.05))


def _checkpoint_bytes(cluster: FlinkCluster, job_id: str) -> int:
    latest: dict[str, Any] = cluster.rest.get(f"/jobs/{job_id}/checkpoints")["latest"]
    return int((latest.get("completed") or {}).get("state_size", 0))


def _resident_mb(pid: int) -> float:
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20


def main() -> int:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.endurance_engine", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--mode", choices=("thread", "process"), default="thread")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        result = run(arguments.mode, arguments.requests, arguments.slices, Path(folder))
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
