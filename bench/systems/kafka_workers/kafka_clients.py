"""A consumer of requests and a producer of answers on confluent-kafka, for peers without Flink."""

from confluent_kafka import Consumer, Message, Producer

from bench.harness.messages import ServeCommand

#: As often as our job makes a checkpoint.
COMMIT_INTERVAL_S = 10.0

_POLL_S = 0.1
_FULL_QUEUE_S = 0.01


class KafkaEnds:
    """Reads requests and writes answers; offsets are committed once the answers are out: at least once."""

    def __init__(self, command: ServeCommand) -> None:
        self._topic = command.responses_topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": command.bootstrap_servers,
                "group.id": command.group_id,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                # By default it pauses for a second each time its queue is full.
                "fetch.queue.backoff.ms": 10,
            }
        )
        self._consumer.subscribe([command.requests_topic])
        self._producer = Producer(
            {"bootstrap.servers": command.bootstrap_servers, "linger.ms": 0, "queue.buffering.max.messages": 100_000}
        )
        self._took = False

    def take(self, most: int) -> list[Message]:
        """Available requests, at most `most`; waits only for the first."""
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return []
        self._took = True
        return [record for record in (first, *self._consumer.consume(most - 1, 0)) if record.error() is None]

    def give(self, key: bytes | None, answer: bytes) -> None:
        """Send an answer."""
        while True:
            try:
                self._producer.produce(self._topic, answer, key)
            except BufferError:
                self._producer.poll(_FULL_QUEUE_S)
            else:
                return

    def note_deliveries(self) -> None:
        """Free the queue of delivered records."""
        self._producer.poll(0)

    def commit(self) -> None:
        """Commit all taken requests once their answers are delivered."""
        self._producer.flush()
        if self._took:
            self._consumer.commit(asynchronous=False)
        self._took = False
