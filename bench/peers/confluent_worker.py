"""A peer, and the strongest: a plain worker on confluent-kafka; what is there runs as one batch of at most 64 rows."""

from pathlib import Path
from time import monotonic

from confluent_kafka import Consumer, Producer

from bench.orders import SubjectOrder
from bench.peers.direct import DirectModels

_MAX_ROWS = 64
_POLL_S = 0.1
_FULL_QUEUE_S = 0.01
#: As often as our job makes a checkpoint.
_COMMIT_INTERVAL_S = 10.0


def run(order: SubjectOrder) -> None:
    """Serves until this process is stopped; offsets are committed once the answers are out: at least once."""
    models = DirectModels(Path(order.repository))
    consumer = Consumer(
        {
            "bootstrap.servers": order.bootstrap_servers,
            "group.id": order.group_id,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # By default it pauses for a second each time its queue is full.
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([order.requests_topic])
    producer = Producer(
        {"bootstrap.servers": order.bootstrap_servers, "linger.ms": 0, "queue.buffering.max.messages": 100_000}
    )
    served = False
    commit_at = monotonic() + _COMMIT_INTERVAL_S
    while True:
        # One call waits for the first, the other takes what is there: neither waits for a batch to fill.
        first = consumer.poll(_POLL_S)
        if first is not None:
            records = [first, *consumer.consume(_MAX_ROWS - 1, 0)]
            answers = models.answer_batch([record.value() or b"" for record in records if record.error() is None])
            for key, answer in answers:
                _send(producer, order.responses_topic, key, answer)
            producer.poll(0)
            served = True
        if monotonic() > commit_at:
            producer.flush()
            if served:
                consumer.commit(asynchronous=False)
            served = False
            commit_at = monotonic() + _COMMIT_INTERVAL_S


def _send(producer: Producer, topic: str, key: bytes, answer: bytes) -> None:
    while True:
        try:
            producer.produce(topic, answer, key)
        except BufferError:
            producer.poll(_FULL_QUEUE_S)
        else:
            return
