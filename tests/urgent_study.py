"""Urgent requests to a saturated stage, in a job on Kafka and Flink, with credits off and on in turn.

    python -m tests.urgent_study [--rounds 3] [--modes thread process] [--unit-ms 20 0] [--waiting-mib 64]

Some requests of 602 KB are always under way, so that the first of two stages never rests; each run of a stage takes
`unit-ms`, asleep. Every 0.4 s an urgent request follows. The tables of docs/performance/006 come from it.
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.models import FLOAT, Tensors, _write, write_plan
from tests.flink.service import Topics
from tests.flink.slow_backend import SlowBackend

TASKS, OUTSTANDING, WIDTH = 2, 100, 3 * 224 * 224
WARM_UP_S, MEASURED_S, URGENT_EVERY_S = 6.0, 14.0, 0.4
USUAL, URGENT = 9, 1
X = np.ones((1, WIDTH), np.float32)


def write_model(folder: Path) -> None:
    """Writes `image` in stages, x -> [ m = mean of x ] -> [ y = 2m ]; the whole model is never run."""
    version = folder / "image" / "1"
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    x: Tensors = {"x": (FLOAT, ["n", WIDTH])}
    m: Tensors = {"m": (FLOAT, ["n", 1])}
    y: Tensors = {"y": (FLOAT, ["n", 1])}
    nodes = ["ReduceMean x m", "Mul m two y"]
    _write(version, nodes[:1], x, m, file="stage-0.onnx", axes=[1])
    _write(version, nodes[1:], m, y, [two], file="stage-1.onnx")
    _write(version, ["ReduceMean x y"], x, y, file="model.onnx", axes=[1])
    write_plan(version, [(["x"], ["m"], 1), (["m"], ["y"], 1)])
    (folder / "image" / "model.toml").write_text('stages = "plan.json"\n[batching]\nmax_rows = 1\n')


class Load:
    """Keeps requests under way, and notes the answers."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._next = 0
        self._sent_s: dict[str, float] = {}
        self.urgent_ms: list[float] = []
        self.usual = 0

    def send(self, priority: int) -> None:
        name = f"{priority}-{self._next}"
        request = InferRequest("image", (Tensor.from_array("x", X),), name, parameters={"priority": priority})
        self._sent_s[name] = time.monotonic()
        self._next += 1
        self._topics._producer.send(
            self._topics.config.kafka.requests_topic, codec.encode_request(request), partition=self._next % 4
        )

    def read(self) -> None:
        self._topics.read_answers(timeout_ms=5)
        for name, [answer, *_] in self._topics.answers.items():
            assert isinstance(answer, InferResponse), answer
            took_ms = (time.monotonic() - self._sent_s.pop(name)) * 1000
            if name.startswith(f"{URGENT}-"):
                self.urgent_ms.append(took_ms)
            else:
                self.usual += 1
        self._topics.answers.clear()

    def run(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        urgent_at_s = 0.0
        while (now_s := time.monotonic()) < end_s:
            if now_s >= urgent_at_s:
                urgent_at_s = now_s + URGENT_EVERY_S
                self.send(URGENT)
            for _ in range(OUTSTANDING - len(self._sent_s)):
                self.send(USUAL)
            self.read()


def measure(
    broker: KafkaBroker, cluster: FlinkCluster, folder: Path, mode: str, credit: str, unit_ms: float, mib: int
) -> Any:
    """Returns answers a second, and the latencies of urgent requests."""
    config = Config().replace(
        job={"name": f"{mode}-{credit}", "execution_mode": mode, "parallelism": TASKS, "checkpoint_interval_ms": 2000},
        exchange={"credits": credit},
        scheduling={"max_waiting_bytes": mib << 20},
        models={"repository": str(folder)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config, cluster.url, SlowBackend("image" if unit_ms else "none", unit_ms / 1000))
    load = Load(topics)
    load.send(URGENT)
    while not load.urgent_ms:
        load.read()
    load.run(WARM_UP_S)
    load.usual, load.urgent_ms = 0, []
    load.run(MEASURED_S)
    running.cancel()
    while cluster.rest.jobs() and running.status() not in ("CANCELED", "FAILED"):
        time.sleep(0.2)
    topics.close()
    return load.usual / MEASURED_S, load.urgent_ms


def main() -> None:
    """Prints the table, a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=["thread", "process"])
    parser.add_argument("--unit-ms", type=float, nargs="+", default=[20.0, 0.0])
    parser.add_argument("--waiting-mib", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "models")
        print("| mode | run | round | credits | answers/s | urgent p50 | p90 | most | n |", flush=True)
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        with KafkaBroker(folder / "kafka") as broker, FlinkCluster(folder / "cluster", TASKS, slots=2) as cluster:
            for mode, unit_ms, number in product(arguments.modes, arguments.unit_ms, range(arguments.rounds)):
                for credit in ("off", "on") if number % 2 == 0 else ("on", "off"):
                    rate, urgent_ms = measure(
                        broker, cluster, folder / "models", mode, credit, unit_ms, arguments.waiting_mib
                    )
                    p50, p90, most = np.percentile(urgent_ms, [50, 90, 100])
                    print(
                        f"| {mode} | {unit_ms:.0f} ms | {number + 1} | {credit} | {rate:.1f} | {p50:.0f} ms"
                        f" | {p90:.0f} ms | {most:.0f} ms | {len(urgent_ms)} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
