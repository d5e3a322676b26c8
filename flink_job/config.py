"""The job's configuration, read from one TOML file."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_tables import FlowTable, beside, check_schemas, check_topics
from anabranch.flink_job.kafka.security import OWN_PROPERTIES, KafkaSecurity, SecretReference, check_security
from anabranch.flink_job.toml_sections import read_section
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.limits import DEFAULT_MESSAGE_BYTES, KAFKA_FRAMING_BYTES, MAX_MESSAGE_BYTES
from anabranch.schemas.model import Batching, SessionOptions

#: Flink's option and its older name.
UNALIGNED = "execution.checkpointing.unaligned.enabled"
_UNALIGNED_ONCE = "execution.checkpointing.unaligned"
EXECUTION_MODE = "python.execution-mode"
_CHECKPOINT_DIR = "execution.checkpointing.dir"
_JOB_NAME = re.compile(r"\w[\w .-]*")
#: A small job may grow.
_LEAST_PARTITIONS = 4
_MOST_FAILED = 10

_PositiveInt = Annotated[int, Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the TOML file."""


class KafkaConfig(_Section, frozen=True):
    """Brokers and topics.

    Attributes:
        bootstrap_servers: Brokers, `HOST:PORT,HOST:PORT`.
        requests_topic: Topic of requests.
        responses_topic: Topic of answers.
        errors_topic: Topic of dead letters.
        models_topic: Topic of the served models.
        group_id: Consumer group.
        start: Position of a group without committed offsets.
        isolation: `read_committed` skips aborted transactions.
        create_topics: Creates missing topics at the start.
        partitions: Of created topics; 0 for the parallelism, at least 4, and 32 for answers.
        replication: Replicas of created topics; 0 for the broker's default.
        discovery_interval_ms: Time until new partitions are read.
        max_message_bytes: Largest request and answer; larger ones become errors.
        max_response_bytes: Largest answer; 0 for `max_message_bytes`.
        max_letter_bytes: Largest dead letter; 0 for the limit of its topic.
        headers: Headers that answers and letters repeat.
        reply_topics: Allowed reply topics; `NAME*` for a prefix.
        security: Encryption and authentication.
        properties: Other Java settings of Kafka clients.
    """

    bootstrap_servers: str = "127.0.0.1:9092"
    requests_topic: str = "inference-requests"
    responses_topic: str = "inference-responses"
    errors_topic: str = "inference-errors"
    models_topic: str = "inference-models"
    group_id: str = "anabranch"
    start: Literal["earliest", "latest"] = "earliest"
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    create_topics: bool = True
    partitions: Annotated[int, Meta(ge=0)] = 0
    replication: Annotated[int, Meta(ge=0, le=2**15 - 1)] = 0
    discovery_interval_ms: Annotated[int, Meta(ge=100)] = 3_000
    # A dead letter in base64 must fit a Java array of 2 GiB.
    max_message_bytes: Annotated[int, Meta(ge=1, le=MAX_MESSAGE_BYTES)] = DEFAULT_MESSAGE_BYTES
    max_response_bytes: Annotated[int, Meta(ge=0)] = 0
    max_letter_bytes: Annotated[int, Meta(ge=0)] = 0
    headers: tuple[str, ...] = ("kafka_correlationId", "correlation-id", "traceparent", "tracestate")
    reply_topics: tuple[str, ...] = ()
    security: KafkaSecurity = KafkaSecurity()
    properties: dict[str, str | int | float | bool] = {}

    @property
    def record_limit_bytes(self) -> int:
        """Largest request or answer record."""
        return self.max_message_bytes + KAFKA_FRAMING_BYTES

    @property
    def letter_limit_bytes(self) -> int:
        """Largest dead-letter record, in base64."""
        return self.max_letter_bytes or self.max_message_bytes * 4 // 3 + KAFKA_FRAMING_BYTES

    @property
    def response_limit_bytes(self) -> int:
        """Largest encoded answer."""
        return min(self.max_response_bytes or self.max_message_bytes, self.max_message_bytes)

    @property
    def original_limit_bytes(self) -> int:
        """Largest request in a dead letter."""
        return max(0, min(self.max_message_bytes, (self.letter_limit_bytes - KAFKA_FRAMING_BYTES) * 3 // 4))


class JobConfig(_Section, frozen=True):
    """Flink's settings.

    Attributes:
        name: Name in Flink, by which a job finds its state again; prefix of Kafka transactions.
        parallelism: Inference tasks.
        execution_mode: `thread` runs Python in the TaskManager's JVM, `process` beside it.
        delivery: `exactly-once` delays answers to checkpoints; `at-least-once` may repeat them.
        checkpoint_interval_ms: Time between checkpoints.
        checkpoint_timeout_ms: Time after which a checkpoint fails.
        max_failed_checkpoints: Failures in a row that fail the job, which restarts from its last checkpoint; -1 for
            any number. By default 10 with `exactly-once`, whose answers wait for a checkpoint, else any.
        checkpoint_dir: Shared URI; checkpoints are kept in its folder `name`. Required for
            `exactly-once` and on clusters.
        buffer_timeout_ms: Longest wait in a network buffer; -1 until it is full.
        max_parallelism: Bound of `parallelism` while state is kept.
        max_run_memory_mb: Memory for all runs of a process together, without weights; 0 for half of the machine's or
            container's.
        bounded: Ends the job at the last record present at its start.
        flink: Other Flink options; they take precedence.
    """

    name: str = "anabranch"
    parallelism: _PositiveInt = 2
    execution_mode: Literal["thread", "process"] = "thread"
    delivery: Literal["at-least-once", "exactly-once"] = "at-least-once"
    checkpoint_interval_ms: _PositiveInt = 10_000
    checkpoint_timeout_ms: Annotated[int, Meta(ge=1000)] = 600_000
    max_failed_checkpoints: Annotated[int, Meta(ge=-1)] | None = None
    checkpoint_dir: str = ""
    buffer_timeout_ms: Annotated[int, Meta(ge=-1)] = 0
    max_parallelism: Annotated[int, Meta(ge=1, le=2**15)] = 128
    max_run_memory_mb: Annotated[int, Meta(ge=0, le=2**30)] = 0
    bounded: bool = False
    flink: dict[str, str] = {}

    @property
    def tolerated_checkpoints(self) -> int:
        """Failed checkpoints in a row before the job fails; -1 for any number."""
        if self.max_failed_checkpoints is None:
            return _MOST_FAILED if self.delivery == "exactly-once" else -1
        return self.max_failed_checkpoints

    @property
    def state_url(self) -> str:
        """Folder of the job's checkpoints and savepoints; empty without `checkpoint_dir`."""
        return f"{self.checkpoint_dir.rstrip('/')}/{self.name}" if self.checkpoint_dir else ""

    @property
    def crash_dir(self) -> str:
        """Folder of notes on runs: beside checkpoints in files, else a relative one."""
        url = urlsplit(self.checkpoint_dir)
        is_file = url.path and url.scheme in {"", "file"}
        return str(Path(unquote(url.path), ".crashes", self.name)) if is_file else self.name


class ExchangeConfig(_Section, frozen=True):
    """Records between tasks.

    Attributes:
        transport: `auto` uses shared memory within a machine; `messages` uses Flink's network.
        claim_from_bytes: Size from which a record uses shared memory.
        arena_bytes: Shared memory of a task for its records to one operator.
        credits: `on` bounds the records on the way to each task by number; tasks report by UDP. `off`: by bytes.
    """

    transport: Literal["auto", "messages"] = "auto"
    claim_from_bytes: _PositiveInt = 64 * 1024
    arena_bytes: Annotated[int, Meta(ge=1, le=2**40)] = 128 * 1024 * 1024
    credits: Literal["on", "off"] = "on"


class ModelsConfig(_Section, frozen=True):
    """Served models.

    Attributes:
        repository: Folder of `NAME/VERSION/model.onnx`, which only `anabranch run` reads.
        store: Shared URI of a folder, to which models are copied and from which TaskManagers load them;
            `.models` in `job.checkpoint_dir` by default.
    """

    repository: str = "models"
    store: str = ""


class RegistryConfig(_Section, frozen=True):
    """The schema registry of flows, with Confluent's REST interface.

    Attributes:
        url: Address, `http://HOST:PORT`.
        username: User; empty for none.
        password: Password, as `env:NAME` or `file:PATH`.
        ca_file: PEM file of trusted certificates on every TaskManager; empty for the system's.
        timeout_ms: Time until an event whose schema is not answered becomes a dead letter.
    """

    url: Annotated[str, Meta(pattern="^$|^https?://.+$")] = ""
    username: str = ""
    password: SecretReference = ""
    ca_file: str = ""
    timeout_ms: Annotated[int, Meta(ge=100)] = 60_000


class ModelDefaults(_Section, frozen=True):
    """Settings of models without their own."""

    batching: Batching = Batching()
    session: SessionOptions = SessionOptions()


class Config(_Section, frozen=True):
    """The whole configuration."""

    kafka: KafkaConfig = KafkaConfig()
    job: JobConfig = JobConfig()
    scheduling: SchedulingPolicy = SchedulingPolicy()
    exchange: ExchangeConfig = ExchangeConfig()
    models: ModelsConfig = ModelsConfig()
    defaults: ModelDefaults = ModelDefaults()
    registry: RegistryConfig = RegistryConfig()
    flow: tuple[FlowTable, ...] = ()

    @property
    def topic_partitions(self) -> int:
        """Partitions of a topic that this job creates."""
        return self.kafka.partitions or max(_LEAST_PARTITIONS, self.job.parallelism)

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """Return a copy: `config.replace(job={"parallelism": 4})`."""
        changed = {name: msgspec.structs.replace(getattr(self, name), **values) for name, values in sections.items()}
        return check(msgspec.structs.replace(self, **changed))


def load(path: Path | None, **defaults: dict[str, Any]) -> Config:
    """Read a TOML file, or raise ConfigError; `defaults` fill missing keys."""
    place = str(path or "the configuration")
    try:
        written: dict[str, Any] = msgspec.toml.decode(path.read_bytes()) if path else {}
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; check the path") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{place} is not TOML: {error}; correct it there") from None
    for section, values in defaults.items():
        stated = written.get(section, {})
        written[section] = values | stated if isinstance(stated, dict) else stated
    config = read_section(written, Config, place)
    if path is not None and config.flow:
        config = msgspec.structs.replace(config, flow=beside(config.flow, path.parent))
    return _check_together(config, place)


def check(config: Config) -> Config:
    """Return the same configuration, or raise ConfigError."""
    place = "the configuration"
    read_section(msgspec.to_builtins(config), Config, place)
    return _check_together(config, place)


def _check_together(config: Config, place: str) -> Config:
    job, kafka = config.job, config.kafka
    if job.parallelism > job.max_parallelism:
        raise ConfigError(
            f"{place}: job.parallelism is {job.parallelism}, expected 1 to {job.max_parallelism}: "
            "lower it, or raise job.max_parallelism"
        )
    if not _JOB_NAME.fullmatch(job.name):
        raise ConfigError(
            f"{place}: job.name is {job.name!r}, which names a folder: use letters, digits, spaces, '.', '_' and '-'"
        )
    if _CHECKPOINT_DIR in job.flink:
        raise ConfigError(
            f"{place}: job.flink has {_CHECKPOINT_DIR!r}, where `anabranch run` does not look for state: "
            "write job.checkpoint_dir"
        )
    topics = (kafka.requests_topic, kafka.responses_topic, kafka.errors_topic)
    if not all(topics) or len(set(topics)) < len(topics):
        names = ", ".join(map(repr, topics))
        raise ConfigError(f"{place}: the topics of [kafka] are {names}, expected three different names: rename one")
    check_topics(config.flow, topics, place)
    check_schemas(config.flow, place, has_registry=bool(config.registry.url))
    check_security(kafka.security, place)
    if kafka.security != KafkaSecurity():
        doubled = sorted(filter(OWN_PROPERTIES.fullmatch, kafka.properties))
        if doubled:
            raise ConfigError(
                f"{place}: kafka.properties has {', '.join(doubled)} beside [kafka.security]: state it in one of them"
            )
    return config


def shares_memory(config: Config) -> bool:
    """Tell whether tasks share memory; unaligned checkpoints could restore lost claims."""
    asked = (config.job.flink.get(key, "false") for key in (UNALIGNED, _UNALIGNED_ONCE))
    return config.exchange.transport == "auto" and not any(value.strip().lower() == "true" for value in asked)


def frames_stay_in_process(config: Config) -> bool:
    """Tell whether Python reads frames in Java's memory."""
    return execution_mode(config) == "thread" and shares_memory(config)


def execution_mode(config: Config) -> str:
    """Return the mode that Flink will use."""
    return config.job.flink.get(EXECUTION_MODE, config.job.execution_mode)
