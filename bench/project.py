"""This project's job as a subject."""

from anabranch.flink_job.config import Config
from anabranch.flink_job.job import start
from bench.busy import BusyBackend
from bench.orders import SubjectOrder


def config_of(order: SubjectOrder) -> Config:
    """The project's defaults, with what the order says."""
    return Config().replace(
        kafka={
            "bootstrap_servers": order.bootstrap_servers,
            "requests_topic": order.requests_topic,
            "responses_topic": order.responses_topic,
            "errors_topic": order.errors_topic,
            "group_id": order.group_id,
        },
        job={"parallelism": order.parallelism, "execution_mode": order.mode},
        models={"repository": order.repository},
        scheduling={"overload": order.overload, "balance": order.balance},
    )


def run(order: SubjectOrder) -> None:
    """Runs the job until this process is stopped."""
    backend = BusyBackend(order.busy_folder, order.slowdown) if order.busy_folder else None
    start(config_of(order), order.flink_url, backend).wait()
