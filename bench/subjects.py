"""Who is measured. Every subject answers the same requests, on the same topics, from the same model repository."""

from dataclasses import dataclass
from typing import Literal

from bench.orders import Mode

#: The module whose `run(SubjectOrder)` serves. Only the subject's own process imports it: a worker needs no PyFlink.
MODULES = {
    "anabranch": "bench.project",
    "naive PyFlink map": "bench.peers.naive_flink",
    "kafka-python worker": "bench.peers.kafka_python_worker",
    "confluent-kafka worker": "bench.peers.confluent_worker",
}


@dataclass(frozen=True)
class Subject:
    """One contender.

    Attributes:
        kind: A key of `MODULES`.
        parallelism: Flink tasks; a worker has one.
        mode: PyFlink's execution mode; None for a worker.
        overload: What this project does with more than it can serve.
    """

    kind: str
    parallelism: int = 1
    mode: Mode | None = None
    overload: Literal["wait", "refuse"] = "wait"

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        if self.mode is None:
            return self.kind
        tasks = "1 task" if self.parallelism == 1 else f"{self.parallelism} tasks"
        return f"{self.kind}, {self.mode}, {tasks}"


def anabranch(mode: Mode, parallelism: int = 1) -> Subject:
    """This project's job."""
    return Subject("anabranch", parallelism, mode)


def naive_map(mode: Mode, parallelism: int = 1) -> Subject:
    """A PyFlink job with one `map` that runs the model for each record."""
    return Subject("naive PyFlink map", parallelism, mode)


KAFKA_PYTHON = Subject("kafka-python worker")
CONFLUENT = Subject("confluent-kafka worker")
