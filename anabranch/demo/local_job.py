"""A broker, a Flink cluster and the job on it, in a folder of their own, for as long as the demo runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile

from anabranch.demo.features import MODEL_NAME, MODEL_VERSION, model_path
from anabranch.flink_job.config import Config
from anabranch.stack.errors import StackError
from anabranch.stack.flink_cluster import FlinkCluster
from anabranch.stack.flink_rest import FlinkRest
from anabranch.stack.kafka_broker import KafkaBroker, record_counts
from anabranch.topics import topics_of

#: What the `java` command takes options from, beside its arguments.
_JVM_OPTIONS = "JDK_JAVA_OPTIONS"
#: Magika costs least per row where it runs one row at a time (5.3 ms against 5.9 ms in a batch of 8), and its scores
#: depend a little on whether a row runs alone: small requests are not put together. A shard takes 0.1 s.
_MODEL_FILE = """\
[batching]
max_rows = 1
shard_rows = 16
"""


def make_repository(folder: Path) -> Path:
    """A model repository with Magika's own model in it."""
    version = folder / MODEL_NAME / MODEL_VERSION
    version.mkdir(parents=True)
    copyfile(model_path(), version / "model.onnx")
    (folder / MODEL_NAME / "model.toml").write_text(_MODEL_FILE)
    return folder


class LocalJob:
    """Everything that the demo starts.

    Args:
        folder: Where topics, models, checkpoints and logs go.
        tasks: Inference tasks, each in a TaskManager process of its own.
    """

    def __init__(self, folder: Path, tasks: int) -> None:
        self._folder = folder
        self._tasks = tasks
        config = Config()
        self._broker = KafkaBroker(
            folder / "kafka", max_message_bytes=config.kafka.max_message_bytes, log_dir=folder / "logs"
        )
        self._cluster = FlinkCluster(folder / "flink", tasks, log_dir=folder / "logs")
        self._config = config.replace(
            job={
                "name": "anabranch-demo",
                "parallelism": tasks,
                "checkpoint_dir": (folder / "checkpoints").as_uri(),
            },
            models={"repository": str(make_repository(folder / "models"))},
        )

    @property
    def config(self) -> Config:
        """The job's configuration; it has the broker's address as soon as that is launched."""
        return self._config.replace(kafka={"bootstrap_servers": self._broker.bootstrap_servers})

    @property
    def flink_url(self) -> str:
        """REST address and web page of the cluster."""
        return self._cluster.url

    def launch(self) -> None:
        """Launches broker and cluster, and does not wait for them.

        Call it on the main thread: they end with the thread that launched them.

        Raises:
            StackError, InstallationError: They cannot be launched.
        """
        with _quick_to_start():
            self._broker.launch()
            self._cluster.launch()

    def await_ready(self) -> None:
        """Waits for broker and cluster, and makes the topics.

        Raises:
            StackError: One of them did not start.
        """
        self._broker.await_ready()
        self._broker.create_topics(*topics_of(self._config.kafka))
        self._cluster.await_ready()

    def submit(self) -> None:
        """Starts the job; it is not yet running when this returns.

        Raises:
            ConfigError, ModelLoadFailed: Its models cannot be used.
        """
        from anabranch.flink_job import installation, job  # noqa: PLC0415 - a second, which the broker and the cluster also need

        installation.activate(log_dir=self._folder / "logs")
        with _quick_to_start():
            job.start(self.config, self.flink_url)

    def explain(self) -> str:
        """What the job is doing, for a person who waits for an answer of it in vain."""
        flink = FlinkRest(self.flink_url)
        try:
            kafka = self._config.kafka
            sizes = record_counts(self._broker.bootstrap_servers, [kafka.requests_topic, kafka.responses_topic])
            lines = [f"Topics have so many records: {sizes}"]
            lines.append(f"Flink has {len(flink.task_manager_ids())} of {self._tasks} TaskManagers")
            for job in flink.jobs():
                lines.append(f"job {job.name} is {job.state}")
                lines += [f"  {name}: {states}" for name, states in flink.task_states(job.job_id).items()]
                lines.append(flink.last_failure(job.job_id))
        except StackError as error:
            return str(error)
        return "\n".join(filter(None, lines))

    def kill(self) -> None:
        """Ends whatever was started, at once: nothing of it is wanted any more."""
        self._cluster.kill()
        self._broker.kill()


@contextmanager
def _quick_to_start() -> Iterator[None]:
    """Every JVM that is started in here compiles its code once, and quickly.

    None of them lives long enough for the better compiler to pay, and the work is done in ONNX Runtime: without it, the
    demo starts with 27 seconds of one core instead of 43, and is no slower afterwards.
    """
    before = os.environ.get(_JVM_OPTIONS)
    os.environ[_JVM_OPTIONS] = f"{before or ''} -XX:TieredStopAtLevel=1".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ[_JVM_OPTIONS]
        else:
            os.environ[_JVM_OPTIONS] = before
