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
    "Java Flink map": "bench.peers.java_flink",
    "Java Flink map on Crayfish's JSON": "bench.peers.java_flink",
    "Ray Serve": "bench.peers.ray_serve",
    "MLServer": "bench.peers.mlserver_bridge",
}
#: Kinds whose packages clash with PyFlink's, and the environment of each: `bench/peers/NAME.lock` says what is in it.
ENVIRONMENTS = {"Ray Serve": "ray", "MLServer": "mlserver"}
#: Kinds that need the jars of `bench/peers/jars.lock`.
JAVA_KINDS = frozenset({"Java Flink map", "Java Flink map on Crayfish's JSON"})


@dataclass(frozen=True)
class Subject:
    """One contender.

    Attributes:
        kind: A key of `MODULES`.
        parallelism: Flink tasks; a worker or a server has one.
        mode: PyFlink's execution mode; None where there is no PyFlink.
        overload: What this project does with more than it can serve.
        balance: Whether its tasks hand batches to each other.
        busy_folder, slowdown: See `bench.busy`.
    """

    kind: str
    parallelism: int = 1
    mode: Mode | None = None
    overload: Literal["wait", "refuse"] = "wait"
    balance: Literal["offload", "off"] = "offload"
    busy_folder: str = ""
    slowdown: int = 1

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        if self.mode is None:
            return self.kind
        tasks = "1 task" if self.parallelism == 1 else f"{self.parallelism} tasks"
        return f"{self.kind}, {self.mode}, {tasks}" + (", no balance" if self.balance == "off" else "")


def anabranch(mode: Mode, parallelism: int = 1) -> Subject:
    """This project's job."""
    return Subject("anabranch", parallelism, mode)


def naive_map(mode: Mode, parallelism: int = 1) -> Subject:
    """A PyFlink job with one `map` that runs the model for each record."""
    return Subject("naive PyFlink map", parallelism, mode)


KAFKA_PYTHON = Subject("kafka-python worker")
CONFLUENT = Subject("confluent-kafka worker")
#: Per record, as in Crayfish, on the wire that all subjects share.
JAVA = Subject("Java Flink map")
#: On Crayfish's own wire: its requests are those of `bench.peers.crayfish.as_crayfish`.
CRAYFISH = Subject("Java Flink map on Crayfish's JSON")
RAY_SERVE = Subject("Ray Serve")
MLSERVER = Subject("MLServer")
