"""A peer without Flink: a worker on confluent-kafka that scores the events of a micro-batch in one session call."""

from pathlib import Path
from time import monotonic

import numpy as np

from bench.harness.messages import ServeCommand
from bench.systems.kafka_workers.kafka_clients import COMMIT_INTERVAL_S, KafkaEnds
from bench.systems.onnx_session import open_session
from bench.workloads.events import FRAUD, SCORE, EventCodec, features_of

_MOST_EVENTS = 500


def run(command: ServeCommand) -> None:
    """Serve until this process is stopped; offsets are committed after each micro-batch, or seldom."""
    session = open_session(Path(command.repository) / FRAUD / "1" / "model.onnx")
    codec = EventCodec("avro" if command.events == "avro" else "json")
    kafka = KafkaEnds(command)
    interval_s = COMMIT_INTERVAL_S if command.kind.endswith("seldom") else 0.0
    commit_at = monotonic() + interval_s
    while True:
        records = kafka.take(_MOST_EVENTS)
        if records:
            events = [codec.read(record.value() or b"") for record in records]
            rows = np.array([features_of(event) for event in events], np.float32)
            scores = session.run(None, {"x": rows})[0][:, 1].tolist()
            for record, event, score in zip(records, events, scores, strict=True):
                event[SCORE] = score
                kafka.give(record.key(), codec.write(event))
            kafka.note_deliveries()
        if monotonic() >= commit_at:
            kafka.commit()
            commit_at = monotonic() + interval_s
