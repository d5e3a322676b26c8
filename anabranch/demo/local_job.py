"""The broker, the Flink cluster, the job and the gateway of one demo, in a folder of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile

from anabranch.demo.features import MODEL_NAME, MODEL_VERSION, model_path
from anabranch.flink_job.config import Config
from anabranch.served_models import publish
from anabranch.stack import gateways
from anabranch.stack.errors import StackError
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.gateways import GatewayPorts, GatewayProcess
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import record_counts
from anabranch.topics import topics_of

#: Environment variable with further options of `java`.
_JVM_OPTIONS = "JDK_JAVA_OPTIONS"
#: Magika's scores depend a little on the batch size, so small requests do not share batches.
_MODEL_FILE = """\
[batching]
max_rows = 1
shard_rows = 16
"""


def make_repository(folder: Path) -> Path:
    """Make a model repository with Magika's model."""
    version = folder / MODEL_NAME / MODEL_VERSION
    version.mkdir(parents=True)
    copyfile(model_path(), version / "model.onnx")
    (folder / MODEL_NAME / "model.toml").write_text(_MODEL_FILE)
    return folder


class LocalJob:
    """The broker, the cluster and the job, with each inference task in its own TaskManager."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self._folder = folder
        self._tasks = tasks
        self._gateway: GatewayProcess | None = None
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
        """The job's configuration; has the broker's address after `launch`."""
        return self._config.replace(kafka={"bootstrap_servers": self._broker.bootstrap_servers})

    @property
    def flink_url(self) -> str:
        """REST address and web page of the cluster."""
        return self._cluster.url

    def launch(self) -> None:
        """Launch broker and cluster, on the main thread: they end with the thread that launched them.

        Raises:
            StackError, InstallationError: One of them cannot be launched.
        """
        with _quick_to_start():
            self._broker.launch()
            self._cluster.launch()

    def await_ready(self) -> None:
        """Wait for broker and cluster, and make the topics.

        Raises:
            StackError: One of them did not start.
        """
        self._broker.await_ready()
        self._broker.create_topics(*topics_of(self._config))
        self._cluster.await_ready()

    @property
    def http_url(self) -> str:
        """Address of the gateway, which serves after `await_gateway`."""
        return self._started_gateway().address.http_url

    def submit(self) -> None:
        """Submit the job and launch its gateway, and return before they serve.

        Raises:
            ConfigError, ModelLoadFailed: A model cannot be used.
        """
        from anabranch.flink_job import installation, job  # noqa: PLC0415 - takes a second, while the broker starts

        installation.activate(log_dir=self._folder / "logs")
        catalog = job.read_models(self.config)
        with _quick_to_start():
            job.start(self.config, self.flink_url, catalog=catalog)
        publish(self.config, catalog)
        self._gateway = GatewayProcess(
            self._folder,
            gateways.NAME,
            GatewayPorts(http=0, grpc=0),
            ["--bootstrap-servers", self._broker.bootstrap_servers, "--flink-url", self.flink_url],
            tied=True,
        )
        self._gateway.launch()

    def await_gateway(self) -> None:
        """Wait for the gateway.

        Raises:
            StartFailed: It did not start.
        """
        self._started_gateway().await_ready()

    def _started_gateway(self) -> GatewayProcess:
        if self._gateway is None:
            raise StackError("the demo's gateway was not started: call submit()")
        return self._gateway

    def explain(self) -> str:
        """Describe the state of topics, TaskManagers and tasks, for a job that does not answer."""
        flink = FlinkRest(self.flink_url)
        try:
            kafka = self._config.kafka
            sizes = record_counts(self._broker.bootstrap_servers, [kafka.requests_topic, kafka.responses_topic])
            lines = [f"Records in the topics: {sizes}"]
            lines.append(f"Flink has {len(flink.task_manager_ids())} of {self._tasks} TaskManagers")
            for job in flink.jobs():
                lines.append(f"job {job.name} is {job.state}")
                lines += [f"  {name}: {states}" for name, states in flink.task_states(job.job_id).items()]
                lines.append(flink.last_failure(job.job_id))
        except StackError as error:
            return str(error)
        return "\n".join(filter(None, lines))

    def kill(self) -> None:
        """Kill gateway, cluster and broker."""
        if self._gateway is not None:
            self._gateway.kill()
        self._cluster.kill()
        self._broker.kill()


@contextmanager
def _quick_to_start() -> Iterator[None]:
    """Start JVMs without the second compiler, which costs a short demo more time than it saves."""
    before = os.environ.get(_JVM_OPTIONS)
    os.environ[_JVM_OPTIONS] = f"{before or ''} -XX:TieredStopAtLevel=1".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ[_JVM_OPTIONS]
        else:
            os.environ[_JVM_OPTIONS] = before
