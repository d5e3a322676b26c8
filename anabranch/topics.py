"""The topics that a job reads and writes, with the sizes that its configuration asks for."""

from anabranch.flink_job.config import KafkaConfig
from anabranch.stack.kafka_broker import Topic, create_topics


def topics_of(kafka: KafkaConfig) -> list[Topic]:
    """The job's three topics; each lets the largest message of its kind through."""
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
    """Makes the topics that are not there yet, and returns their names.

    Raises:
        TopicNotMade: The broker refused one, or does not answer.
    """
    return create_topics(kafka.bootstrap_servers, topics_of(kafka))
