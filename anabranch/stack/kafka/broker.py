"""A Kafka broker on this machine for development: one process, KRaft, loopback only."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from anabranch.flink_job.installation import find_java, kafka_class_path
from anabranch.schemas.limits import DEFAULT_MESSAGE_BYTES, KAFKA_FRAMING_BYTES
from anabranch.stack.kafka.topics import Topic, create_topics
from anabranch.stack.ports import LOOPBACK, answers, claim, free_port
from anabranch.stack.processes import JAVA_LOCALE, LocalProcess
from anabranch.stack.service import Service, ServiceGroup

HEAP_MB = 512

_FORMAT_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 60.0
_STOP_GRACE_S = 10.0
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


class KafkaBroker(ServiceGroup):
    """One broker. Its data stays in the folder, and a broker that starts there again serves it.

    Writes are not forced to disk: a crash of the machine, unlike a crash of the process, can lose the last records.
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
        """Start nothing yet.

        Args:
            data_dir: Folder of the topics.
            port: Port on 127.0.0.1; 0 takes a free one.
            max_message_bytes: Largest value of a record.
            log_dir: Folder of the logs. Default: in the data folder.
            tied: See `ServiceGroup`.
            settings: Broker settings that override all others.
        """
        super().__init__(tied=tied, ready_timeout_s=_READY_TIMEOUT_S, stop_grace_s=_STOP_GRACE_S)
        self._data_dir = data_dir.resolve()
        self._log_dir = (log_dir or data_dir / "logs").resolve()
        self._wanted_port = port
        self._port = 0
        self._max_message_bytes = max_message_bytes
        self._settings = dict(settings or {})

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, as HOST:PORT."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def process(self) -> LocalProcess:
        """The running process."""
        return self._process("broker")

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self._log_dir / "broker.log"

    def create_topics(self, *topics: Topic) -> list[str]:
        """Create missing topics; see `create_topics`."""
        return create_topics(self.bootstrap_servers, topics)

    def _describe(self) -> Iterator[Service]:
        # After a stop, clients still expect the last port.
        self._port = claim(self._port or self._wanted_port, "--kafka-port")
        properties = self._write_settings()
        if not (self._data_dir / "log" / "meta.properties").exists():
            self._format(properties)
        self.log_path.unlink(missing_ok=True)
        # The server's garbage collector favours short pauses.
        collector = ["-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
        yield self._java("broker", "kafka.Kafka", str(properties), heap_mb=HEAP_MB, options=collector)

    def _is_ready(self, name: str) -> bool:
        log = Path(self._services[name].log_path)
        return log.exists() and _READY_LINE in log.read_text() and answers(self._port)

    def _format(self, properties: Path) -> None:
        formatter = self._java(
            "broker-format",
            "kafka.tools.StorageTool",
            *("format", "--ignore-formatted", "--cluster-id", uuid.uuid4().hex[:22], "--config", str(properties)),
            heap_mb=128,
            options=["-XX:TieredStopAtLevel=1"],
        ).start(tied=self._tied)
        try:
            formatter.await_success(_FORMAT_TIMEOUT_S)
        finally:
            formatter.kill()

    def _java(self, name: str, main_class: str, *arguments: str, heap_mb: int, options: list[str]) -> Service:
        logging = self._data_dir / "log4j2.properties"
        logging.write_text(_LOGGING)
        log_path, out_path = (self._log_dir / f"{name}{suffix}" for suffix in (".log", ".out"))
        command = [
            str(find_java() / "bin" / "java"),
            f"-Xmx{heap_mb}m",
            *options,
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Danabranch.log={log_path}",
            f"-Dlog4j2.configurationFile={logging.as_uri()}",
            "-cp",
            kafka_class_path(),
            main_class,
            *arguments,
        ]
        return Service(
            name=name,
            command=command,
            environment=JAVA_LOCALE,
            directory=str(self._data_dir),
            # The storage tool reports its errors on standard output.
            log_path=str(log_path if name == "broker" else out_path),
            out_path=str(out_path),
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
            # A list of paths: the whole path could have a comma.
            "log.dirs": "log",
            # A misspelt topic is an error.
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
            "group.initial.rebalance.delay.ms": "0",
            "log.retention.hours": "24",
            "log.segment.bytes": str(256 * 1024 * 1024),
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
            "log.cleaner.threads": "1",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "socket.request.max.bytes": str(max(100 * 1024 * 1024, 2 * request_bytes)),
            # After a crash, the next broker may register when the last session has expired.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            **self._settings,
        }
        properties = self._data_dir / "server.properties"
        lines = (f"{key}={_java_escaped(value)}\n" for key, value in settings.items())
        properties.write_text("".join(lines), encoding="ascii")
        return properties


def _java_escaped(text: str) -> str:
    """Escape a value of a properties file, which Java reads as Latin-1."""
    units = text.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)
