"""A peer: a worker on kafka-python (with crc32c); what one poll brings, 64 requests at most, runs as one batch."""

from pathlib import Path
from time import monotonic

from kafka import KafkaConsumer, KafkaProducer

from bench.harness.messages import ServeCommand
from bench.systems.direct_models import DirectModels

_MOST_REQUESTS = 64
_POLL_MS = 100
#: As often as our job makes a checkpoint.
_COMMIT_INTERVAL_S = 10.0


def run(command: ServeCommand) -> None:
    """Serve until this process is stopped; offsets are committed once the answers are out: at least once."""
    models = DirectModels(Path(command.repository))
    consumer = KafkaConsumer(
        command.requests_topic,
        bootstrap_servers=command.bootstrap_servers,
        group_id=command.group_id,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    producer = KafkaProducer(bootstrap_servers=command.bootstrap_servers, linger_ms=0)
    commit_at = monotonic() + _COMMIT_INTERVAL_S
    while True:
        batches = consumer.poll(_POLL_MS, _MOST_REQUESTS)
        messages = [record.value for records in batches.values() for record in records]
        if messages:
            for key, answer in models.answer_batch(messages):
                producer.send(command.responses_topic, answer, key)
        if monotonic() > commit_at:
            producer.flush()
            consumer.commit()
            commit_at = monotonic() + _COMMIT_INTERVAL_S
