"""The topics of a job, with the size limits of its configuration."""

from anabranch.flink_job.config import KafkaConfig
from anabranch.stack.kafka_broker import Topic, create_topics


def topics_of(kafka: KafkaConfig) -> list[Topic]:
    """Returns the job's three topics, each with the limit of its largest message."""
    limits_bytes = {
        kafka.requests_topic: kafka.record_limit_bytes,
        kafka.responses_topic: kafka.record_limit_bytes,
        kafka.errors_topic: kafka.letter_limit_bytes,
    }
    return [
        Topic(name, kafka.partitions, {"max.message.bytes": str(limit_bytes)})
        for name, limit_bytes in limits_bytes.items()
    ]


def make_topics(kafka: KafkaConfig) -> list[str]:
    """Makes missing topics, and returns their names.

    Raises:
        TopicNotMade: The broker refuses one, or does not answer.
    """
    return create_topics(kafka.bootstrap_servers, topics_of(kafka))
