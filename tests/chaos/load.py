"""The load of a chaos run: a sender with a steady rate, and a reader of committed answers that never stops."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Literal, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from tests.chaos.checker import Generation, TopicRecord
from tests.chaos.stand import LETTERS, PARTITIONS, REQUESTS, RESPONSES
from tests.chaos.workload import EXPECTED_HEADER, POISON_KINDS, UNREADABLE, Outgoing, good_request, poison

#: A planted defect: a reader that loses answers, or a sink that writes them twice.
Plant = Literal["none", "drop", "double"]

_PLANT_EVERY = 500
_POISON_EVERY = 200
_CONSUME = 1000
_QUIET_S = 5.0
#: Lost connections are what a run is about.
_SILENT: dict[str, Any] = {"log_level": 0}


#: A time too far ahead, and the other records of its batch.
_REFUSED = (KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD)


class Ledger:
    """Send time of each request, and time of its first answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, float] = {}
        self.sent_s: dict[str, float] = {}
        self._answers: list[tuple[float, float]] = []
        self.last_change_s = time.monotonic()

    def sent(self, name: str) -> None:
        """Notes a request that must be answered."""
        with self._lock:
            self._pending[name] = self.sent_s[name] = time.monotonic()

    def refused(self, name: str) -> None:
        """Notes a request that the broker did not take."""
        with self._lock:
            self.last_change_s = time.monotonic()
            self._pending.pop(name, None)
            self.sent_s.pop(name, None)

    def answered(self, name: str) -> None:
        """Notes an answer."""
        with self._lock:
            self.last_change_s = time.monotonic()
            sent_s = self._pending.pop(name, None)
            if sent_s is not None:
                self._answers.append((sent_s, self.last_change_s))

    def pending_since(self, at_s: float) -> int:
        """Returns the number of unanswered requests that were sent before a time."""
        with self._lock:
            return sum(sent_s <= at_s for sent_s in self._pending.values())

    def pending(self) -> list[str]:
        """Returns the unanswered requests."""
        with self._lock:
            return list(self._pending)

    def first_answer_after(self, at_s: float) -> float | None:
        """Returns the time of the first answer to a request that was sent after a time."""
        with self._lock:
            return min((seen_s for sent_s, seen_s in reversed(self._answers) if sent_s > at_s), default=None)

    def caught_up_after(self, at_s: float) -> float | None:
        """Returns the time of the last answer to a request that was sent before a time; None if one is pending."""
        with self._lock:
            if any(sent_s <= at_s for sent_s in self._pending.values()):
                return None
            return max((seen_s for sent_s, seen_s in self._answers if sent_s <= at_s), default=at_s)


class Load:
    """Sends requests through the proxy, and reads answers and dead letters beside it."""

    def __init__(
        self, servers: str, direct_servers: str, *, seed: int, rate_per_s: float, plant: Plant = "none"
    ) -> None:
        """Connect to nothing yet."""
        self.ledger = Ledger()
        self.answers: list[TopicRecord] = []
        self.letters: list[TopicRecord] = []
        self.generations = [Generation(0)]
        self._servers, self._direct_servers = servers, direct_servers
        self._seed, self._rate_per_s, self._plant = seed, rate_per_s, plant
        self._random = Random(seed)
        self._clock_offset_s = 0.0
        self._good, self._bad = 0, 0
        #: Requests with a time that the broker refuses: their sender knows.
        self.refused = 0
        self._producer_lock = threading.Lock()
        self._sending_ended, self._reading_ended = threading.Event(), threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._send_all, self._read_all)
        ]

    def __enter__(self) -> Self:
        """Starts sending and reading."""
        # An idempotent producer: a request is in its topic once, however often it is sent.
        settings = {
            **_SILENT,
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "linger.ms": 2,
            "message.max.bytes": 2**21,
        }
        self._producer = Producer(
            {"bootstrap.servers": self._servers, "queue.buffering.max.messages": 10**6, **settings}
        )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops both."""
        self._sending_ended.set()
        self._reading_ended.set()
        for thread in self._threads:
            thread.join(30)

    # ---- what faults change

    def move_clock(self, by_s: float) -> None:
        """Moves the timestamps of the records that are sent from now on."""
        self._clock_offset_s = by_s

    def send_poison(self, kind: str) -> None:
        """Sends one bad request."""
        with self._producer_lock:
            self._bad += 1
            name = f"p{self._bad}"
        record = poison(name, kind)
        if record.code != UNREADABLE:
            self.ledger.sent(name)
        self._send(name, record)

    def upgraded(self, generation: int, from_s: float) -> None:
        """Notes that other models answer, since a command that began at a time and has ended."""
        last = self.generations[-1]
        self.generations[-1] = Generation(last.number, last.from_s, time.monotonic())
        self.generations.append(Generation(generation, from_s))

    # ---- the end

    def finish_sending(self, end_s: float) -> None:
        """Stops sending, and waits until the broker has all requests."""
        self._sending_ended.set()
        self._threads[0].join(max(1.0, end_s - time.monotonic()))
        self._producer.flush(max(1.0, end_s - time.monotonic()))

    def await_answers(self, end_s: float) -> None:
        """Waits until every request is answered and a while nothing more comes, at most until a time."""
        while time.monotonic() < end_s:
            self.check()
            is_quiet = time.monotonic() - self.ledger.last_change_s > _QUIET_S
            if is_quiet and not self.ledger.pending():
                return
            time.sleep(0.2)

    def check(self) -> None:
        """Raises the failure of a thread of the load."""
        if self._failures:
            raise RuntimeError("the load failed") from self._failures[0]

    def read_requests(self) -> list[TopicRecord]:
        """Reads the whole requests topic: all that was sent, as often as it was."""
        consumer = self._consumer(REQUESTS, range(PARTITIONS))
        found: list[TopicRecord] = []
        ends = set(range(PARTITIONS))
        while ends:
            for message in consumer.consume(_CONSUME, 1.0):
                if message.error() is None:
                    found.append(_record(message))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends.discard(message.partition())
        consumer.close()
        return found

    # ---- threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._failures.append(error)

    def _send_all(self) -> None:
        due_s = time.monotonic()
        while not self._sending_ended.is_set():
            due_s += 1 / self._rate_per_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            if self._good % _POISON_EVERY == _POISON_EVERY - 1:
                self.send_poison(self._random.choice(POISON_KINDS))
            self.ledger.sent(str(self._good))
            self._send(str(self._good), good_request(self._seed, self._good))
            self._good += 1

    def _send(self, name: str, record: Outgoing) -> None:
        def note(error: KafkaError | None, _: object) -> None:
            if error is None:
                return
            if error.code() not in _REFUSED:
                self._failures.append(RuntimeError(f"the broker has not taken request {name}: {error}"))
            self.refused += 1
            self.ledger.refused(name)

        timestamp_ms = round((time.time() + self._clock_offset_s) * 1000)
        self._producer.produce(
            REQUESTS,
            key=record.key,
            value=record.value,
            timestamp=timestamp_ms,
            headers=record.headers,
            on_delivery=note,
        )
        self._producer.poll(0)

    def _read_all(self) -> None:
        consumer = self._consumer(RESPONSES, [0], also=LETTERS)
        count = 0
        copier = Producer({"bootstrap.servers": self._direct_servers, **_SILENT}) if self._plant == "double" else None
        while not self._reading_ended.is_set():
            for message in consumer.consume(_CONSUME, 0.05):
                if message.error() is not None:
                    continue
                record = _record(message)
                if message.topic() == LETTERS:
                    self.letters.append(record)
                    continue
                count += 1
                if count % _PLANT_EVERY == 0 and self._plant == "drop":
                    continue
                if count % _PLANT_EVERY == 0 and copier:
                    copier.produce(RESPONSES, key=message.key(), value=message.value())
                    copier.poll(0)
                self.answers.append(record)
                self.ledger.answered(record.key.decode())
        consumer.close()

    def _consumer(self, topic: str, partitions: Sequence[int], also: str = "") -> Any:
        consumer = Consumer(
            {
                "bootstrap.servers": self._direct_servers,
                "group.id": "chaos-judge",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
                "fetch.message.max.bytes": 2**22,
                **_SILENT,
            }
        )
        places = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions]
        consumer.assign([*places, TopicPartition(also, 0, OFFSET_BEGINNING)] if also else places)
        return consumer


def _record(message: Any) -> TopicRecord:
    expected = ""
    with suppress(TypeError):
        expected = dict(message.headers())[EXPECTED_HEADER].decode()
    return TopicRecord(
        message.partition(), message.offset(), message.key() or b"", message.value(), time.monotonic(), expected
    )
