"""A peer, and the strongest: a worker on confluent-kafka; what is there runs as one batch, of 64 requests at most."""

from pathlib import Path
from time import monotonic

from bench.harness.messages import ServeCommand
from bench.systems.direct_models import DirectModels
from bench.systems.kafka_workers.kafka_clients import COMMIT_INTERVAL_S, KafkaEnds

_MOST_REQUESTS = 64


def run(command: ServeCommand) -> None:
    """Serve until this process is stopped."""
    models = DirectModels(Path(command.repository))
    kafka = KafkaEnds(command)
    commit_at = monotonic() + COMMIT_INTERVAL_S
    while True:
        records = kafka.take(_MOST_REQUESTS)
        if records:
            for key, answer in models.answer_batch([record.value() or b"" for record in records]):
                kafka.give(key, answer)
            kafka.note_deliveries()
        if monotonic() > commit_at:
            kafka.commit()
            commit_at = monotonic() + COMMIT_INTERVAL_S
