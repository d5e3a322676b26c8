"""A Kafka broker on this machine: one process, KRaft, loopback only; for development, not for precious data."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from anabranch.flink_job.installation import find_java, kafka_class_path
from anabranch.schemas.limits import DEFAULT_MESSAGE_BYTES, KAFKA_FRAMING_BYTES
from anabranch.stack.errors import StackError, TopicNotMade
from anabranch.stack.ports import LOOPBACK, answers, claim, free_port
from anabranch.stack.processes import LocalProcess

HEAP_MB = 512

_FORMAT_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 60.0
_STOP_GRACE_S = 10.0
_ADMIN_TIMEOUT_MS = 30_000
_READY_LINE = "Kafka Server started"

_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = File
appender.file.type = RollingFile
appender.file.name = File
appender.file.fileName = ${sys:anabranch.log}
appender.file.filePattern = ${sys:anabranch.log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-40c - %m%n
appender.file.policies.type = Policies
appender.file.policies.start.type = OnStartupTriggeringPolicy
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 50MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
"""


class Topic(msgspec.Struct, frozen=True):
    """A topic to make.

    Attributes:
        name: Its name.
        partitions: How many partitions it has.
        settings: Kafka's own settings of a topic, such as `retention.ms`.
    """

    name: str
    partitions: int = 1
    settings: Mapping[str, str] = {}


class KafkaBroker:
    """A broker that lives as long as its `with` block, or from `launch` to `stop`.

    Its data stays in the folder: a broker that is started there again has the topics and records of the last one.
    Writes are not forced to disk, so a crash of the machine, unlike one of the process, can lose the last of them.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        max_message_bytes: int = DEFAULT_MESSAGE_BYTES,
        *,
        log_dir: Path | None = None,
        tied: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Looks at nothing and starts nothing yet.

        Args:
            data_dir: Where topics are kept; made when it is missing.
            port: Where to listen on 127.0.0.1; 0 takes a free one.
            max_message_bytes: The largest value of a record that the broker takes.
            log_dir: Where its logs go; by default into the data folder.
            tied: whether the broker ends when this process does, however that ends.
            settings: Settings of the broker that have the last word.
        """
        self._data_dir = data_dir.resolve()
        self._log_dir = (log_dir or data_dir / "logs").resolve()
        self._wanted_port = port
        self._port = 0
        self._max_message_bytes = max_message_bytes
        self._tied = tied
        self._settings = dict(settings or {})
        self._process: LocalProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to, as HOST:PORT."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def process(self) -> LocalProcess:
        """The running process.

        Raises:
            StackError: the broker was not started.
        """
        if self._process is None:
            raise StackError("the broker was not started: call start(), or use it in a `with` block")
        return self._process

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self._log_dir / "broker.log"

    def __enter__(self) -> Self:
        """Starts it, and returns when it serves."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops it."""
        self.stop()

    def start(self) -> None:
        """Starts it, and returns when it serves; when that fails, nothing is left running.

        Raises:
            InstallationError: Java or the jars are missing.
            PortInUse: the port is taken.
            StartFailed: it ended, or was not ready in time.
        """
        try:
            self.launch()
            self.await_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Starts the process and does not wait for it; the port is known from here on.

        Raises:
            InstallationError, PortInUse, StartFailed: as for `start`.
        """
        # A broker that was stopped, or killed, comes back where its clients look for it.
        self._port = claim(self._port or self._wanted_port, "--kafka-port")
        properties = self._write_settings()
        if not (self._data_dir / "log" / "meta.properties").exists():
            self._format(properties)
        self.log_path.unlink(missing_ok=True)
        self._process = self._java("broker", "kafka.Kafka", str(properties), heap_mb=HEAP_MB, log_path=self.log_path)

    def await_ready(self) -> None:
        """Returns when the broker serves clients.

        Raises:
            StartFailed: it ended, or was not ready in time.
        """
        self.process.await_ready(self._is_ready, _READY_TIMEOUT_S)

    def stop(self) -> None:
        """Ends it in good order, so that the next start has nothing to recover."""
        if self._process:
            self._process.stop(_STOP_GRACE_S)

    def kill(self) -> None:
        """Ends it at once, as a crash would; `start` brings it back on the same port with the same data."""
        if self._process:
            self._process.kill()

    def create_topics(self, *topics: Topic) -> list[str]:
        """Makes the topics that are not there yet, and returns the names of those that it made.

        Raises:
            TopicNotMade: the broker refused one.
        """
        return create_topics(self.bootstrap_servers, topics)

    def _is_ready(self) -> bool:
        return self.log_path.exists() and _READY_LINE in self.log_path.read_text() and answers(self._port)

    def _format(self, properties: Path) -> None:
        cluster_id = uuid.uuid4().hex[:22]
        formatter = self._java(
            "broker-format",
            "kafka.tools.StorageTool",
            *("format", "--ignore-formatted", "--cluster-id", cluster_id, "--config", str(properties)),
            heap_mb=128,
            log_path=self._log_dir / "broker-format.out",
        )
        try:
            formatter.await_success(_FORMAT_TIMEOUT_S)
        finally:
            formatter.kill()

    def _java(self, name: str, main_class: str, *arguments: str, heap_mb: int, log_path: Path) -> LocalProcess:
        logging = self._data_dir / "log4j2.properties"
        logging.write_text(_LOGGING)
        # A short-lived tool, or a broker on a laptop: quick to start matters more than the last tenth of its speed.
        collector = ["-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"] if name == "broker" else ["-XX:TieredStopAtLevel=1"]
        command = [
            str(find_java() / "bin" / "java"),
            f"-Xmx{heap_mb}m",
            *collector,
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Danabranch.log={self._log_dir / (name + '.log')}",
            f"-Dlog4j2.configurationFile={logging.as_uri()}",
            "-cp",
            kafka_class_path(),
            main_class,
            *arguments,
        ]
        return LocalProcess.start(
            name,
            command,
            environment={},
            directory=self._data_dir,
            out_path=self._log_dir / f"{name}.out",
            log_path=log_path,
            tied=self._tied,
        )

    def _write_settings(self) -> Path:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        controller_port = free_port()
        request_bytes = self._max_message_bytes + KAFKA_FRAMING_BYTES
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._data_dir / "log"),
            # A topic with a spelling mistake in its name is an error, not a new topic.
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(request_bytes),
            "replica.fetch.max.bytes": str(request_bytes),
            # One broker can only have one replica.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "transaction.max.timeout.ms": str(15 * 60 * 1000),
            # There are no other members to wait for.
            "group.initial.rebalance.delay.ms": "0",
            "log.retention.hours": "24",
            "log.segment.bytes": str(256 * 1024 * 1024),
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
            "log.cleaner.threads": "1",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "socket.request.max.bytes": str(max(100 * 1024 * 1024, 2 * request_bytes)),
            # A broker that comes back after a crash is let in when the session of the crashed one has run out.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            **self._settings,
        }
        properties = self._data_dir / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return properties


def create_topics(bootstrap_servers: str, topics: Iterable[Topic]) -> list[str]:
    """Makes the topics that are not there yet, and returns the names of those that it made.

    On return each of them can be written to and read from.

    Raises:
        TopicNotMade: the broker refused one, or does not answer.
    """
    from kafka import KafkaAdminClient  # noqa: PLC0415  (a third of a second, which only callers should pay)
    from kafka.errors import KafkaError  # noqa: PLC0415

    wanted = {topic.name: topic for topic in topics}
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers, client_id="anabranch-topics")
        try:
            missing = [name for name in wanted if name not in set(admin.list_topics())]
            if missing:
                admin.create_topics(
                    {
                        name: {
                            "num_partitions": wanted[name].partitions,
                            "replication_factor": 1,
                            "configs": dict(wanted[name].settings),
                        }
                        for name in missing
                    },
                    timeout_ms=_ADMIN_TIMEOUT_MS,
                    wait_for_metadata=True,
                )
        finally:
            admin.close()
    except KafkaError as error:
        raise TopicNotMade(f"cannot make {', '.join(wanted)} on {bootstrap_servers}: {error}") from error
    return missing


def record_counts(bootstrap_servers: str, topics: Iterable[str]) -> dict[str, int]:
    """How many records have been written to each topic; transaction markers count, too.

    Raises:
        StackError: The broker does not answer.
    """
    from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415  (as above)
    from kafka.errors import KafkaError  # noqa: PLC0415

    try:
        consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers)
        try:
            return {
                topic: sum(
                    consumer.end_offsets(
                        [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
                    ).values()
                )
                for topic in topics
            }
        finally:
            consumer.close()
    except KafkaError as error:
        raise StackError(f"no Kafka broker answers at {bootstrap_servers} ({error})") from error
