"""Who is measured. Every system answers the same requests, on the same topics, from the same model repository."""

from dataclasses import dataclass
from typing import Literal

from bench.harness.messages import Mode

#: The module whose `run(ServeCommand)` serves. Only the system's own process imports it: a worker needs no PyFlink.
MODULES = {
    "anabranch": "bench.systems.anabranch_job",
    "naive PyFlink map": "bench.systems.flink.naive_map",
    "kafka-python worker": "bench.systems.kafka_workers.kafka_python_worker",
    "confluent-kafka worker": "bench.systems.kafka_workers.confluent_worker",
    "Java Flink map": "bench.systems.flink.java_map",
    "Java Flink map on Crayfish's JSON": "bench.systems.flink.java_map",
    "Ray Serve": "bench.systems.serving.ray_serve",
    "MLServer": "bench.systems.serving.mlserver_bridge",
}
#: Kinds whose packages clash with PyFlink's, and the environment of each: `serving/NAME.lock` says what is in it.
ENVIRONMENTS = {"Ray Serve": "ray", "MLServer": "mlserver"}
#: Kinds that need the jars of `flink/jars.lock`.
JAVA_KINDS = frozenset({"Java Flink map", "Java Flink map on Crayfish's JSON"})


@dataclass(frozen=True)
class System:
    """One contender.

    Attributes:
        kind: A key of `MODULES`.
        parallelism: Flink tasks; a worker or a server has one.
        mode: PyFlink's execution mode; None where there is no PyFlink.
        overload: What this project does with more than it can serve.
        balance: Whether its tasks hand batches to each other.
        busy_folder, slowdown: See `bench.harness.session_time`.
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


def anabranch(mode: Mode, parallelism: int = 1) -> System:
    """This project's job."""
    return System("anabranch", parallelism, mode)


def naive_map(mode: Mode, parallelism: int = 1) -> System:
    """A PyFlink job with one `map` that runs the model for each record."""
    return System("naive PyFlink map", parallelism, mode)


KAFKA_PYTHON = System("kafka-python worker")
CONFLUENT = System("confluent-kafka worker")
#: Per record, as in Crayfish, on the wire that all systems share.
JAVA = System("Java Flink map")
#: On Crayfish's own wire: its requests are those of `bench.systems.flink.crayfish_wire.as_crayfish`.
CRAYFISH = System("Java Flink map on Crayfish's JSON")
RAY_SERVE = System("Ray Serve")
MLSERVER = System("MLServer")
