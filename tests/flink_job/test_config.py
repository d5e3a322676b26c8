"""The configuration: written values are used, and unusable ones are refused by their names."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from anabranch.flink_job import config as config_module
from anabranch.flink_job.config import (
    UNALIGNED,
    Config,
    ExchangeConfig,
    JobConfig,
    KafkaConfig,
    ModelsConfig,
    load,
    shares_memory,
)
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.job import flink_options
from anabranch.operators.core.scheduling.policy import SchedulingPolicy


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "anabranch.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_load_without_a_file_gives_valid_defaults() -> None:
    assert load(None) == Config()
    assert config_module.check(Config()) == Config()


def test_load_reads_every_section(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path,
            """
            [kafka]
            requests_topic = "in"
            max_message_bytes = 1000
            [kafka.properties]
            "security.protocol" = "SSL"
            [job]
            parallelism = 3
            execution_mode = "process"
            delivery = "exactly-once"
            [job.flink]
            "taskmanager.memory.process.size" = "2g"
            [scheduling]
            work_slice_ms = 1
            [models]
            repository = "/srv/models"
            [defaults.batching]
            max_delay_ms = 5
            [defaults.session]
            providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
            """,
        )
    )
    assert (config.kafka.requests_topic, config.kafka.properties) == ("in", {"security.protocol": "SSL"})
    assert (config.job.parallelism, config.job.execution_mode, config.job.delivery) == (3, "process", "exactly-once")
    assert config.job.flink == {"taskmanager.memory.process.size": "2g"}
    assert (config.models.repository, config.defaults.batching.max_delay_ms) == ("/srv/models", 5.0)
    assert config.defaults.session.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert config.kafka.responses_topic == Config().kafka.responses_topic


def test_load_prefers_the_file_to_the_callers_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "[job]\nparallelism = 3\n")
    config = load(path, job={"parallelism": 9, "name": "caller"}, models={"repository": "m"})
    assert (config.job.parallelism, config.job.name, config.models.repository) == (3, "caller", "m")
    assert load(None, job={"parallelism": 9}).job.parallelism == 9


def test_replace_checks_changed_keys() -> None:
    assert Config().replace(job={"parallelism": 4}).job.parallelism == 4
    with pytest.raises(ConfigError, match=r"job\.parallelism is 0"):
        Config().replace(job={"parallelism": 0})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[kafka]\nbootstrap = 'a:1'\n", "bootstrap"),
        ("[kafkas]\n", "kafkas"),
        ("[job]\nparalelism = 2\n", "paralelism"),
        ("[defaults.batching]\nmaxrows = 2\n", "maxrows"),
        ("[defaults.session]\nthreads = 2\n", "threads"),
        ("[job]\nexecution_mode = 'fast'\n", "execution_mode"),
        ("[job]\ndelivery = 'maybe-once'\n", "delivery"),
        ("[job]\nparallelism = '2'\n", "parallelism"),
        ("[job]\nparallelism = 2.5\n", "parallelism"),
        ("[job]\nbounded = 1\n", "bounded"),
        ("job = 3\n", "job"),
        ("[defaults.session]\noptimization = 'most'\n", "optimization"),
        ("[job]\nparallelism = 0\n", "job.parallelism"),
        ("[job]\nparallelism = 129\n", "job.parallelism"),
        ("[job]\nmax_parallelism = 0\n", "parallelism"),
        ("[job]\nmax_parallelism = 32769\n", "job.max_parallelism"),
        ("[job]\ncheckpoint_interval_ms = 0\n", "job.checkpoint_interval_ms"),
        ("[job]\nbuffer_timeout_ms = -2\n", "job.buffer_timeout_ms"),
        ("[kafka]\npartitions = -1\n", "kafka.partitions"),
        ("[kafka]\nmax_message_bytes = 0\n", "kafka.max_message_bytes"),
        ("[kafka]\nmax_message_bytes = 2147483647\n", "kafka.max_message_bytes"),
        ("[kafka]\nresponses_topic = 'inference-requests'\n", "different names"),
        ("[kafka]\nerrors_topic = ''\n", "different names"),
        ("[scheduling]\nwindow_timeout_ms = 0\n", "scheduling.window_timeout_ms"),
        ("[scheduling]\nremember_ms = -1\n", "scheduling.remember_ms"),
        ("[scheduling]\ndefault_priority = 0\n", "scheduling.default_priority"),
        ("[scheduling]\nwork_slice_ms = nan\n", "scheduling.work_slice_ms"),
        ("[scheduling]\nwork_slice_ms = -0.1\n", "scheduling.work_slice_ms"),
        ("[scheduling]\nmax_waiting_bytes = -1\n", "scheduling.max_waiting_bytes"),
        ("[exchange]\ntransport = 'pipes'\n", "transport"),
        ("[exchange]\nclaim_from_bytes = 0\n", "exchange.claim_from_bytes"),
        ("[exchange]\narena_bytes = -1\n", "exchange.arena_bytes"),
        ("[defaults.batching]\nmax_rows = 0\n", "defaults.batching.max_rows"),
        ("[defaults.batching]\nshard_rows = -1\n", "defaults.batching.shard_rows"),
        ("[defaults.batching]\nmax_delay_ms = -0.1\n", "defaults.batching.max_delay_ms"),
        ("[defaults.batching]\nmax_delay_ms = inf\n", "defaults.batching.max_delay_ms"),
        ("[defaults.batching]\nmax_delay_ms = nan\n", "defaults.batching.max_delay_ms"),
        ("[defaults.session]\nintra_op_threads = -1\n", "defaults.session.intra_op_threads"),
        ("[defaults.session]\nproviders = []\n", "defaults.session.providers"),
    ],
)
def test_load_unusable_value_names_the_key_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[job]\nparallelism = 0\n", "job.parallelism is 0, expected at least 1"),
        ("[job]\nmax_parallelism = 32769\n", "job.max_parallelism is 32769, expected 1 to 32768"),
        (
            "[job]\nparallelism = 129\n",
            "job.parallelism is 129, expected 1 to 128: lower it, or raise job.max_parallelism",
        ),
        ("[job]\nparallelism = '2'\n", "job.parallelism is '2', expected an integer"),
        ("[job]\nparallelism = 2.5\n", "job.parallelism is 2.5, expected an integer"),
        ("[job]\nbounded = 1\n", "job.bounded is 1, expected true or false"),
        ("[job]\ndelivery = 'once'\n", "unknown job.delivery 'once'; available: at-least-once, exactly-once"),
        (
            "[exchange]\nsize = 1\n",
            "unknown key 'size' in [exchange]; available: arena_bytes, claim_from_bytes, credits, transport",
        ),
        (
            "[kafkas]\n",
            "unknown key 'kafkas'; available: defaults, exchange, flow, job, kafka, models, registry, scheduling",
        ),
        ("[scheduling]\nwork_slice_ms = nan\n", "scheduling.work_slice_ms is nan, expected 0 to 31536000000"),
        ("[defaults.batching]\nmax_rows = 0\n", "defaults.batching.max_rows is 0, expected at least 1"),
        ("[defaults.session]\nproviders = []\n", "defaults.session.providers is [], expected a list of at least 1"),
        ("job = 3\n", "job is 3, expected a table"),
        (
            "[kafka]\nresponses_topic = 'inference-requests'\n",
            "the topics of [kafka] are 'inference-requests', 'inference-requests', 'inference-errors', "
            "expected three different names: rename one",
        ),
    ],
)
def test_load_message_says_value_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(path := written(tmp_path, text))
    assert str(refused.value) == f"{path}: {message}"


@pytest.mark.parametrize("section", [KafkaConfig, JobConfig, SchedulingPolicy, ExchangeConfig, ModelsConfig])
def test_every_key_is_described_in_one_line_of_attributes(section: type[msgspec.Struct]) -> None:
    """The configuration reference prints these lines."""
    _, _, attributes = (inspect.getdoc(section) or "").partition("Attributes:\n")
    described = re.findall(r"^    (\w+): \S.*", attributes, re.MULTILINE)
    assert described == [field.name for field in msgspec.structs.fields(section)]


@pytest.mark.parametrize("text", ["[kafka", "a = ", b"\xff\xfe", b"a = '\xff'"])
def test_load_file_that_is_not_toml_is_named(tmp_path: Path, text: str | bytes) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=r"anabranch\.toml"):
        load(path)


def test_load_unreadable_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load(path)


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("", True),
        ("[exchange]\ntransport = 'messages'\n", False),
        ("[job.flink]\n'execution.checkpointing.unaligned.enabled' = 'false'\n", True),
        ("[job.flink]\n'execution.checkpointing.unaligned.enabled' = ' True'\n", False),
        ("[job.flink]\n'execution.checkpointing.unaligned' = 'true'\n", False),
    ],
)
def test_shares_memory_excludes_unaligned_checkpoints(tmp_path: Path, text: str, shared: bool) -> None:
    config = load(written(tmp_path, text))
    assert shares_memory(config) == shared
    # The job's option overrides the cluster's.
    assert (UNALIGNED in flink_options(config)) == (shared or UNALIGNED in text)
    assert (flink_options(config).get(UNALIGNED) == "false") == shared


def test_flink_options_wake_no_idle_task() -> None:
    modes = "thread", "process"
    threads, processes = (flink_options(Config().replace(job={"execution_mode": mode})) for mode in modes)
    bundle, buffer = "python.fn-execution.bundle.time", "execution.buffer-timeout.interval"
    assert bundle not in threads
    assert (processes[bundle], processes[buffer], threads[buffer]) == ("2", "0 ms", "0 ms")


def test_kafka_limits_default_to_the_largest_message() -> None:
    kafka = KafkaConfig(max_message_bytes=3_000_000)
    assert kafka.response_limit_bytes == kafka.original_limit_bytes == 3_000_000
    assert kafka.letter_limit_bytes == 4_000_000 + 64 * 1024


def test_kafka_limits_of_topics_bound_answers_and_letters() -> None:
    kafka = KafkaConfig(max_response_bytes=100_000, max_letter_bytes=64 * 1024 + 4_000)
    assert (kafka.response_limit_bytes, kafka.original_limit_bytes) == (100_000, 3_000)
    assert KafkaConfig(max_response_bytes=2**40).response_limit_bytes == KafkaConfig().max_message_bytes
    assert KafkaConfig(max_letter_bytes=1).original_limit_bytes == 0


@pytest.mark.parametrize(
    ("checkpoints", "crashes"),
    [
        ("file:///data/a%20b/", "/data/a b/.crashes/mine"),
        ("/data", "/data/.crashes/mine"),
        ("s3://bucket/data", "mine"),
        ("", "mine"),
    ],
)
def test_crash_dir_is_beside_checkpoints_in_files(checkpoints: str, crashes: str) -> None:
    assert Config().replace(job={"name": "mine", "checkpoint_dir": checkpoints}).job.crash_dir == crashes
