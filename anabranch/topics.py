"""The topics of a job, with the size limits of its configuration."""

from collections.abc import Container

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.kafka.properties import python_client_options
from anabranch.schemas.limits import KAFKA_FRAMING_BYTES
from anabranch.schemas.model import Catalog
from anabranch.served_models import publish
from anabranch.stack.kafka.topics import Topic, create_topics, partition_counts, size_limits

#: Each client reads one.
_RESPONSE_PARTITIONS = 32
#: An error of any code fits twice.
_LEAST_LIMIT_BYTES = 2 * KAFKA_FRAMING_BYTES


def topics_of(config: Config) -> list[Topic]:
    """Return the job's topics, each with the limit of its largest message."""
    kafka = config.kafka
    limits_bytes = {
        kafka.requests_topic: kafka.record_limit_bytes,
        kafka.responses_topic: kafka.record_limit_bytes,
        kafka.errors_topic: kafka.letter_limit_bytes,
        **dict.fromkeys([name for flow in config.flow for name in (flow.source, flow.to)], kafka.record_limit_bytes),
    }
    partitions = dict.fromkeys(limits_bytes, config.topic_partitions)
    if not kafka.partitions:
        partitions[kafka.responses_topic] = max(_RESPONSE_PARTITIONS, config.topic_partitions)
    return [
        *(
            Topic(name, partitions[name], {"max.message.bytes": str(limit_bytes)}, kafka.replication)
            for name, limit_bytes in limits_bytes.items()
        ),
        Topic(kafka.models_topic, 1, {"cleanup.policy": "compact"}, kafka.replication),
    ]


def make_topics(config: Config, catalog: Catalog | None = None) -> list[str]:
    """Create the missing topics, and return their names.

    Args:
        catalog: Models of the job, to publish for gateways.

    Raises:
        TopicNotMade: The broker refused one, or does not answer.
        ConfigError: A topic is missing and may not be created, or a secret cannot be read.
    """
    kafka = config.kafka
    options = python_client_options(kafka)
    if kafka.create_topics:
        made = create_topics(kafka.bootstrap_servers, topics_of(config), options)
    else:
        _require_topics(config, partition_counts(kafka.bootstrap_servers, options))
        made = []
    if catalog is not None:
        publish(config, catalog)
    return made


def _require_topics(config: Config, found: Container[str]) -> None:
    # Only gateways need the topic of models.
    needed = (topic.name for topic in topics_of(config) if topic.name != config.kafka.models_topic)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ConfigError(
            f"{config.kafka.bootstrap_servers} has no topic {', '.join(missing)}: "
            "create it, or set kafka.create_topics = true"
        )


def fit_to_topics(config: Config) -> Config:
    """Return the configuration with the limits of its topics: a refused record would fail the job.

    Raises:
        StackError: The broker does not answer.
        ConfigError: A secret cannot be read, or a limit is too small for errors.
    """
    kafka = config.kafka
    written = (kafka.responses_topic, *[flow.to for flow in config.flow])
    topics = (*written, kafka.errors_topic)
    limits = size_limits(kafka.bootstrap_servers, topics, python_client_options(kafka))
    for name, limit_bytes in limits.items():
        if limit_bytes < _LEAST_LIMIT_BYTES:
            raise ConfigError(
                f"topic {name} takes records of {limit_bytes} bytes, too few for an error: "
                f"set its max.message.bytes to {_LEAST_LIMIT_BYTES} at least"
            )
    answers_bytes = min(limits.get(name, kafka.record_limit_bytes) for name in written) - KAFKA_FRAMING_BYTES
    letters_bytes = limits.get(kafka.errors_topic, kafka.letter_limit_bytes)
    return config.replace(
        kafka={
            "max_response_bytes": min(kafka.response_limit_bytes, max(answers_bytes, KAFKA_FRAMING_BYTES)),
            "max_letter_bytes": min(kafka.letter_limit_bytes, letters_bytes),
        }
    )


def idle_task_count(config: Config) -> int:
    """Return the number of tasks without a partition of the requests topic."""
    kafka = config.kafka
    counts = partition_counts(kafka.bootstrap_servers, python_client_options(kafka))
    return max(0, config.job.parallelism - counts.get(kafka.requests_topic, config.topic_partitions))
