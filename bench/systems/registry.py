"""The measured systems."""

from dataclasses import dataclass
from typing import Literal

from bench.harness.messages import Delivery, Events, Mode

#: The module with `run(ServeCommand)` of each kind. Only the system's own process imports it.
MODULES = {
    "anabranch": "bench.systems.anabranch_job",
    "naive PyFlink map": "bench.systems.flink.naive_map",
    "kafka-python worker": "bench.systems.kafka_workers.kafka_python_worker",
    "confluent-kafka worker": "bench.systems.kafka_workers.confluent_worker",
    "Java Flink map": "bench.systems.flink.java_map",
    "Java Flink map on Crayfish's JSON": "bench.systems.flink.java_map",
    "Ray Serve": "bench.systems.serving.ray_serve",
    "MLServer": "bench.systems.serving.mlserver_bridge",
    "PyFlink map": "bench.systems.flink.event_map",
    "infer in a PyFlink job": "bench.systems.flink.infer_job",
    "infer of fields in a PyFlink job": "bench.systems.flink.infer_job",
    "ML_PREDICT": "bench.systems.flink.sql_query",
    "ML_PREDICT, a row a request": "bench.systems.flink.sql_query",
    "event worker": "bench.systems.kafka_workers.event_worker",
    "event worker, commits seldom": "bench.systems.kafka_workers.event_worker",
}
#: Kinds with packages that conflict with PyFlink's: the name of their environment and lock file.
ENVIRONMENTS = {"Ray Serve": "ray", "MLServer": "mlserver"}
#: Kinds that need the jars of `flink/jars.lock`.
JAVA_KINDS = frozenset({"Java Flink map", "Java Flink map on Crayfish's JSON"})


@dataclass(frozen=True)
class System:
    """One measured system.

    Attributes:
        kind: A key of `MODULES`, or the name of a checkout.
        parallelism: Flink tasks.
        mode: PyFlink's execution mode; None without PyFlink.
        overload: This project's overload policy.
        balance: Load balancing between this project's tasks.
        busy_folder: See `bench.harness.session_time`, also for `slowdown`.
        checkout: Folder of another checkout, or empty.
        delivery: This project's delivery.
        checkpoint_folder: See `bench.harness.messages`, also for `checkpoint_interval_ms`, `events` and the
            rest.
    """

    kind: str
    parallelism: int = 1
    mode: Mode | None = None
    overload: Literal["wait", "refuse"] = "wait"
    balance: Literal["offload", "off"] = "offload"
    busy_folder: str = ""
    slowdown: int = 1
    checkout: str = ""
    delivery: Delivery = "at-least-once"
    checkpoint_folder: str = ""
    checkpoint_interval_ms: int = 0
    events: Events = ""
    gateway_url: str = ""
    rows_together: int = 0

    @property
    def name(self) -> str:
        """Name in tables and plots."""
        if self.mode is None:
            return self.kind
        tasks = "1 task" if self.parallelism == 1 else f"{self.parallelism} tasks"
        changes = ", no balance" * (self.balance == "off") + f", {self.delivery}" * (self.delivery == "exactly-once")
        return f"{self.kind}, {self.mode}, {tasks}{changes}"


def anabranch(mode: Mode, parallelism: int = 1) -> System:
    """Thi project's job."""
    return System("anabranch", parallelism, mode)


def naive_map(mode: Mode, parallelism: int = 1) -> System:
    """Return a PyFlink job with one `map` that runs the model for each record."""
    return System("naive PyFlink map", parallelism, mode)


def scoring_events(kind: str, form: Events, mode: Mode | None = None) -> System:
    """Return a system that scores events, with one task."""
    return System(kind, mode=mode, events=form)


KAFKA_PYTHON = System("kafka-python worker")
CONFLUENT = System("confluent-kafka worker")
#: One session call per record, as in Crayfish, with the requests that all systems share.
JAVA = System("Java Flink map")
#: With Crayfish's own JSON requests: see `bench.systems.flink.crayfish_wire`.
CRAYFISH = System("Java Flink map on Crayfish's JSON")
RAY_SERVE = System("Ray Serve")
MLSERVER = System("MLServer")
