"""The job's configuration: one TOML file, read into one frozen tree; a key that is not here is refused.

[kafka]  where requests come from and answers go      [job]       how Flink runs it
[models] what is served                               [defaults]  what a model.toml may change for its model
[scheduling] what waits for how long                  [exchange]  how large records get from task to task
"""

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.schemas.model import Batching, SessionOptions

#: What a record may have beside the message: its key, batch headers, the fields of a dead letter.
_FRAMING_BYTES = 64 * 1024


#: A year: timers count in 64 bits, and nobody waits longer.
_MAX_WAIT_MS = 365 * 24 * 3_600_000


#: Flink's option for checkpoints that do not wait for what is on its way.
UNALIGNED = "execution.checkpointing.unaligned.enabled"
_UNALIGNED_ONCE = "execution.checkpointing.unaligned"
EXECUTION_MODE = "python.execution-mode"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the TOML file."""


class KafkaConfig(_Section, frozen=True):
    """Where requests come from, and where answers go.

    Attributes:
        max_message_bytes: The largest request and the largest answer; larger ones are answered with an error.
        start: Where a group without committed offsets starts to read.
        properties: Passed to every Kafka client of the job, `security.protocol` for example.
    """

    bootstrap_servers: str = "127.0.0.1:9092"
    requests_topic: str = "inference-requests"
    responses_topic: str = "inference-responses"
    errors_topic: str = "inference-errors"
    group_id: str = "anabranch"
    start: Literal["earliest", "latest"] = "earliest"
    partitions: int = 4
    max_message_bytes: int = 16 * 1024 * 1024
    properties: dict[str, str] = {}

    @property
    def record_limit_bytes(self) -> int:
        """What a topic must let through so that a value of `max_message_bytes` fits with its key and its framing."""
        return self.max_message_bytes + _FRAMING_BYTES

    @property
    def letter_limit_bytes(self) -> int:
        """What the errors topic must let through: base64 makes 4 bytes of 3."""
        return self.max_message_bytes * 4 // 3 + _FRAMING_BYTES


class JobConfig(_Section, frozen=True):
    """How Flink runs the job.

    Attributes:
        parallelism: Inference tasks.
        execution_mode: `thread` runs Python inside the TaskManager (low latency), `process` beside it (isolated).
        delivery: `exactly-once` shows answers to a read_committed reader at each checkpoint; `at-least-once` at once,
            where a failure may repeat some.
        checkpoint_dir: Readable by every TaskManager; empty keeps checkpoints in the JobManager's memory.
        buffer_timeout_ms: How long a record waits for others on its way to another task: 0 sends it at once, -1 when a
            buffer is full. Anything else wakes a thread of each task so often, whether there are records or not.
        max_parallelism: Upper bound of `parallelism` for the whole life of the job's state.
        bounded: Stop at the last record that is there at the start (tests, backfill).
        flink: Further Flink options, as in Flink's own configuration.
    """

    name: str = "anabranch"
    parallelism: int = 2
    execution_mode: Literal["thread", "process"] = "thread"
    delivery: Literal["at-least-once", "exactly-once"] = "at-least-once"
    checkpoint_interval_ms: int = 10_000
    checkpoint_dir: str = ""
    buffer_timeout_ms: int = 0
    max_parallelism: int = 128
    bounded: bool = False
    flink: dict[str, str] = {}


class SchedulingConfig(_Section, frozen=True):
    """What waits for how long.

    Attributes:
        default_priority: What a request's priority 0 counts as; 1 is the highest.
        window_timeout_ms: How long a request without a deadline may wait for its last shard.
        remember_ms: How long the merge remembers an answered request, to ignore what comes late.
        work_slice_ms: How long a task runs batches before it looks what else came in, which may be more urgent. It
            looks earlier where the next batch would not end in time.
        overload: When more comes than can be served, `wait` leaves it in Kafka, and `refuse` answers the least urgent
            with `overloaded`.
        max_waiting_bytes: With so much read and waiting, a task reads no more, or refuses.
        max_backlog_ms: With so much work in hand, a task refuses.
        balance: With `offload`, a task that has fallen behind hands batches to others that have time; `off` runs every
            request in the task that read it.
        offload_backlog_ms: With more work than this in hand, a task has fallen behind.
        priority_step_ms: How much longer a request waits for each step of lower priority, when there is a queue.
        no_deadline_ms: A request without a deadline has the place in line of one with so much time.
    """

    default_priority: int = 5
    window_timeout_ms: int = 300_000
    remember_ms: int = 600_000
    work_slice_ms: float = 10.0
    overload: Literal["wait", "refuse"] = "wait"
    max_waiting_bytes: int = 64 * 1024 * 1024
    max_backlog_ms: float = 2_000.0
    balance: Literal["offload", "off"] = "offload"
    offload_backlog_ms: float = 100.0
    priority_step_ms: float = 5_000.0
    no_deadline_ms: float = 10_000.0


class ExchangeConfig(_Section, frozen=True):
    """How large records get from task to task.

    Attributes:
        transport: `auto` hands records of `claim_from_bytes` and more on through shared memory where all tasks are on
            one host; `messages` lets Flink carry them, always. Flink's unaligned checkpoints need `messages`, and get
            them.
        arena_bytes: Shared memory that a task may use for its records to one operator; beyond it, messages.
    """

    transport: Literal["auto", "messages"] = "auto"
    claim_from_bytes: int = 64 * 1024
    arena_bytes: int = 128 * 1024 * 1024


class ModelsConfig(_Section, frozen=True):
    """What is served.

    Attributes:
        repository: A folder of `NAME/VERSION/model.onnx`, at the same path on every TaskManager.
    """

    repository: str = "models"


class ModelDefaults(_Section, frozen=True):
    """What holds for a model whose `model.toml` does not say otherwise."""

    batching: Batching = Batching()
    session: SessionOptions = SessionOptions()


class Config(_Section, frozen=True):
    """The whole configuration."""

    kafka: KafkaConfig = KafkaConfig()
    job: JobConfig = JobConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    models: ModelsConfig = ModelsConfig()
    defaults: ModelDefaults = ModelDefaults()

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """This configuration with some keys changed: `config.replace(job={"parallelism": 4})`."""
        changed = {name: msgspec.structs.replace(getattr(self, name), **values) for name, values in sections.items()}
        return check(msgspec.structs.replace(self, **changed))


def load(path: Path | None, **defaults: dict[str, Any]) -> Config:
    """The configuration in a TOML file.

    Args:
        path: None for a configuration without a file.
        defaults: By section, what holds where the file says nothing: `load(path, job={"parallelism": 4})`.

    Raises:
        ConfigError: The file is missing, is no TOML, has an unknown key, or a value of the wrong type or range.
    """
    try:
        written: dict[str, Any] = msgspec.toml.decode(path.read_bytes()) if path else {}
        for section, values in defaults.items():
            said = written.get(section, {})
            written[section] = values | said if isinstance(said, dict) else said
        return check(msgspec.convert(written, Config))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path or 'the configuration'}: {error}") from None


def check(config: Config) -> Config:
    """The same configuration, if its numbers make sense together.

    Raises:
        ConfigError: One does not.
    """
    kafka, job, scheduling = config.kafka, config.job, config.scheduling
    for key, value, least, most in (
        ("kafka.partitions", kafka.partitions, 1, math.inf),
        # Java has no array of 2 GiB, and a dead letter writes its original in base64.
        ("kafka.max_message_bytes", kafka.max_message_bytes, 1, 2**30),
        ("job.parallelism", job.parallelism, 1, job.max_parallelism),
        ("job.max_parallelism", job.max_parallelism, 1, 2**15),
        ("job.checkpoint_interval_ms", job.checkpoint_interval_ms, 1, math.inf),
        ("job.buffer_timeout_ms", job.buffer_timeout_ms, -1, math.inf),
        ("scheduling.default_priority", scheduling.default_priority, 1, 2**31 - 1),
        ("scheduling.window_timeout_ms", scheduling.window_timeout_ms, 1, _MAX_WAIT_MS),
        ("scheduling.remember_ms", scheduling.remember_ms, 0, _MAX_WAIT_MS),
        ("scheduling.work_slice_ms", scheduling.work_slice_ms, 0, _MAX_WAIT_MS),
        ("scheduling.max_waiting_bytes", scheduling.max_waiting_bytes, 0, math.inf),
        ("scheduling.max_backlog_ms", scheduling.max_backlog_ms, 0, _MAX_WAIT_MS),
        ("scheduling.offload_backlog_ms", scheduling.offload_backlog_ms, 0, _MAX_WAIT_MS),
        ("scheduling.priority_step_ms", scheduling.priority_step_ms, 0, _MAX_WAIT_MS),
        ("scheduling.no_deadline_ms", scheduling.no_deadline_ms, 0, _MAX_WAIT_MS),
        ("exchange.claim_from_bytes", config.exchange.claim_from_bytes, 1, math.inf),
        ("exchange.arena_bytes", config.exchange.arena_bytes, 1, 2**40),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{key} is {value}; it must be {_range(least, most)}")
    topics = (kafka.requests_topic, kafka.responses_topic, kafka.errors_topic)
    if not all(topics) or len(set(topics)) < len(topics):
        raise ConfigError(f"the three topics of [kafka] need different names; they are {', '.join(map(repr, topics))}")
    check_batching(config.defaults.batching, "defaults.batching.")
    check_session(config.defaults.session, "defaults.session.")
    return config


def shares_memory(config: Config) -> bool:
    """Whether records may travel by shared memory.

    An unaligned checkpoint holds what is on its way: a claim to memory that is gone by the time it is restored.
    """
    asked = (config.job.flink.get(key, "false") for key in (UNALIGNED, _UNALIGNED_ONCE))
    return config.exchange.transport == "auto" and not any(value.strip().lower() == "true" for value in asked)


def frames_stay_in_process(config: Config) -> bool:
    """Whether Python reads what Java wrote where it lies: in one process, and nothing on its way is ever restored."""
    return config.job.flink.get(EXECUTION_MODE, config.job.execution_mode) == "thread" and shares_memory(config)


def check_batching(batching: Batching, where: str) -> None:
    """Whether the numbers of a `[batching]` can be used.

    Raises:
        ConfigError: One cannot; the key is named with `where` before it.
    """
    max_rows = 1 if batching.max_rows is None else batching.max_rows
    for key, value, least, most in (
        ("shard_rows", batching.shard_rows, 1, math.inf),
        ("max_rows", max_rows, 1, math.inf),
        ("max_delay_ms", batching.max_delay_ms, 0, _MAX_WAIT_MS),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{where}{key} is {value}; it must be {_range(least, most)}")


def check_session(session: SessionOptions, where: str) -> None:
    """Whether the values of a `[session]` can be used.

    Raises:
        ConfigError: One cannot; the key is named with `where` before it.
    """
    for key in ("intra_op_threads", "inter_op_threads", "warm_up_rows"):
        if getattr(session, key) < 0:
            raise ConfigError(f"{where}{key} is {getattr(session, key)}; it must be at least 0")
    if not session.providers:
        raise ConfigError(f"{where}providers is empty; CPUExecutionProvider is always there")


def _range(least: float, most: float) -> str:
    return f"at least {least}" if most == math.inf else f"from {least} to {most}"
