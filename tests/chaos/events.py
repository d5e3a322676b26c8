"""Events through kills and a rescale, each exactly once: `python -m tests.chaos.events`.

payments --> [ flow: fraud ] --> payments-scored     each good event once, and nothing else in it changed
                  +--> letters                       each malformed one once

One event in fifty is malformed. A TaskManager is killed twice, and between that the job gets more tasks. Avro events
come in three versions of their schema, each of which adds a field.
"""

import argparse
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import fastavro
import msgspec
import numpy as np
import onnxruntime
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from anabranch.jobs.control import JobControl
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.chaos.chaos_slice import checked_out_commit
from tests.core.malformed_events import MALFORMED
from tests.schema_registry import RegistryServer

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "examples" / "payments" / "models"
SOURCE, SCORED, LETTERS = "payments", "payments-scored", "letters"
PARTITIONS, USERS, EVERY_BAD = 4, 200, 50
RATE_PER_S = 500.0
COUNTRIES = ("DE", "FR", "IT", "PL")
HEADERS: list[tuple[str, str | bytes | None]] = [("trace", b"\x00\xff"), ("none", None), ("trace", b"second")]
#: Single precision, of scores between 0 and 1.
TOLERANCE = 1e-6
_TIMEOUT_S, _QUIET = 120.0, 5

Place: TypeAlias = tuple[int, int]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one run.

    Attributes:
        events: Good events that were sent.
        lost: Good events without a scored one.
        doubled: Second scored events.
        wrong: Scored events of which a field, key, header or timestamp is not as it must be.
        disordered: Scored events that overtook an earlier one of their key.
        malformed: Malformed events that were sent.
        lost_letters: Malformed events without a dead letter.
        doubled_letters: Second dead letters.
        wrong_letters: Dead letters of good events.
    """

    events: int
    lost: int
    doubled: int
    wrong: int
    disordered: int
    malformed: int
    lost_letters: int
    doubled_letters: int
    wrong_letters: int
    examples: list[str]

    @property
    def is_clean(self) -> bool:
        """True if every event has its one outcome."""
        letters = (self.lost_letters, self.doubled_letters, self.wrong_letters)
        return not any((self.lost, self.doubled, self.wrong, self.disordered, *letters))


class EventsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run.

    Attributes:
        faults: What happened, in order.
        seconds: From the first event to the last scored one.
        ways: Number of ways in which events were malformed.
        restored: Restores of the job from a checkpoint.
    """

    format: str
    mode: str
    date: str
    commit: str
    rate_per_s: float
    faults: list[str]
    seconds: float
    ways: int
    restored: int
    verdict: Verdict


@dataclass(frozen=True)
class Seen:
    """A record of the topic of scored events."""

    place: Place
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, str | bytes | None]] | None
    timestamp_ms: int


class Events(Protocol):
    """Events in one format."""

    @property
    def malformed(self) -> Mapping[str, bytes]:
        """Messages that are no events, by the fault of each."""

    def event(self, number: int) -> bytes:
        """Encodes an event."""

    def score_of(self, number: int, value: bytes) -> float | None:
        """Returns the score of a scored event; None if anything else in it is wrong."""


def payment(number: int) -> dict[str, Any]:
    """Returns the fields of an event."""
    draw = random.Random(number)
    user = draw.randrange(USERS)
    return {
        "id": f"payment-{number}",
        "amount": round(draw.lognormvariate(4, 1.5), 2),
        "user": {"id": f"user-{user}", "limit": 500.0 * (1 + user % 9), "is_new": user % 5 == 0},
        "card": {"country": draw.choice(COUNTRIES)},
    }


def features(fields: Mapping[str, Any]) -> list[float]:
    """Returns the inputs of the model."""
    user = fields["user"]
    return [fields["amount"], user["limit"], user["is_new"], COUNTRIES.index(fields["card"]["country"])]


def label_of(score: float) -> str:
    """Returns the label that the model gives with a score."""
    return "fraud" if score > 0.5 else "ok"


class JsonEvents:
    """Events whose formatting any parser would change; their members come in any order."""

    malformed = MALFORMED
    _SCORED = re.compile(rb'"fraud": \{"old": true,"score":([0-9.e-]+),"label":"([a-z]+)"\}')

    def event(self, number: int) -> bytes:
        """Encodes an event."""
        members = [f'"{name}": {json.dumps(value)}' for name, value in payment(number).items()]
        members += ['"big": 12345678901234567890123', '"e" : 1E5', '"twice":1', '"twice":2', '"näme": "J\\u00fcrgen €"']
        members.append('"fraud": {"old": true}')
        random.Random(number).shuffle(members)
        return f" {{ {', '.join(members)} }}\n".encode()

    def score_of(self, number: int, value: bytes) -> float | None:
        """Returns the score of a scored event; None if anything else in it is wrong."""
        found = self._SCORED.search(value)
        if found is None or self._SCORED.sub(b'"fraud": {"old": true}', value, count=1) != self.event(number):
            return None
        score = float(found[1])
        return score if found[2].decode() == label_of(score) else None


def _record(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


_USER = _record(
    "User", *({"name": n, "type": t} for n, t in (("id", "string"), ("limit", "double"), ("is_new", "boolean")))
)
_CARD = _record("Card", {"name": "country", "type": {"type": "enum", "name": "Country", "symbols": list(COUNTRIES)}})
_FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "string"},
    {"name": "amount", "type": "double"},
    {"name": "user", "type": ["null", _USER]},
    {"name": "card", "type": _CARD},
]
_NOTE = {"name": "note", "type": ["null", "string"], "default": None}
_TAGS = {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []}
#: Each version puts a new field elsewhere.
VERSIONS = [
    json.dumps(_record("Payment", *fields)) for fields in (_FIELDS, [_NOTE, *_FIELDS], [_NOTE, *_FIELDS, _TAGS])
]


class AvroEvents:
    """Events in Avro with Confluent's framing, whose schema changes in the middle of the stream."""

    def __init__(self, registry: RegistryServer, count: int) -> None:
        self._registry = registry
        self._numbers = [registry.add(text) for text in VERSIONS]
        self._count = count
        self.malformed = self._malformed()

    def event(self, number: int) -> bytes:
        """Encodes an event."""
        version = self._version(number)
        record = io.BytesIO()
        fastavro.schemaless_writer(record, json.loads(VERSIONS[version]), self._fields(number))
        return b"\0" + self._numbers[version].to_bytes(4, "big") + record.getvalue()

    def score_of(self, number: int, value: bytes) -> float | None:
        """Returns the score of a scored event; None if anything else in it is wrong."""
        schema = json.loads(self._registry.schemas[int.from_bytes(value[1:5], "big") - 1])
        record = io.BytesIO(value[5:])
        event: Any = fastavro.schemaless_reader(record, schema, None)
        fraud = event.pop("fraud", {})
        if record.read() or event != self._fields(number) or set(fraud) != {"score", "label"}:
            return None
        score = float(fraud["score"])
        return score if fraud["label"] == label_of(score) else None

    def _version(self, number: int) -> int:
        # For a while, producers of both versions send.
        third = number * len(VERSIONS) / self._count
        return min(len(VERSIONS) - 1, int(third + (0.3 if number % 2 else 0.0)))

    def _fields(self, number: int) -> dict[str, Any]:
        version = self._version(number)
        newer: dict[str, Any] = {"note": f"n{number}" if number % 3 else None} if version else {}
        return payment(number) | newer | ({"tags": ["a", "ü"] * (number % 3)} if version > 1 else {})

    def _malformed(self) -> dict[str, bytes]:
        good = self.event(0)
        body = good[5:]
        long = b"\xff" * 9 + b"\x01"
        made = {
            "empty": b"",
            "JSON": JsonEvents().event(0),
            "other magic": b"\1" + good[1:],
            "text": b"hello",
            "no number": good[:3],
            "no body": good[:5],
            "unknown schema": b"\0\0\0\x27\x0f" + body,
            "negative number": b"\0\xff\xff\xff\xff" + body,
            "byte behind it": good + b"\0",
            "two of them": good + body,
            "negative length": good[:5] + b"\1" + body,
            "longest length": good[:5] + long + body,
            "endless number": good[:5] + b"\xff" * 40,
            "no UTF-8": good[:5] + bytes([body[0]]) + b"\xff" * (len(body) - 1),
        }
        user = body.index(b"user-") - 2
        country = len(body) - 1
        for name, at, byte in (
            ("unknown branch", user, 0x06),
            ("negative branch", user, 0x01),
            ("no user", user, 0x00),
            ("unknown country", country, 0x10),
            ("negative country", country, 0x01),
        ):
            made[name] = good[:5] + body[:at] + bytes([byte]) + body[at + 1 :]
        return made | {f"{at} bytes of it": good[: 5 + at] for at in (1, 4, 10, len(body) // 2, len(body) - 1)}


def judge(
    made: Events,
    sent: Mapping[int, bytes],
    bad: Sequence[Place],
    scored: Iterable[Seen],
    letters: Iterable[Place],
    expected: Callable[[int], float],
    base_ms: int,
) -> Verdict:
    """Compares what was sent with what came.

    Args:
        sent: Key of each good event, by number.
        bad: Places of the malformed events in the source topic.
        scored: Committed records of the topic of scored events, by place.
        letters: Places that dead letters name.
        expected: Score of a good event.
        base_ms: Timestamp of the event 0; that of another is later by its number.
    """
    counts: Counter[int] = Counter()
    last: dict[bytes | None, int] = defaultdict(lambda: -1)
    disordered, examples = 0, []
    wrong = 0
    for record in scored:
        number = record.timestamp_ms - base_ms
        key = sent.get(number)
        score = None
        if key is not None and record.key == key and list(record.headers or ()) == HEADERS:
            score = made.score_of(number, record.value)
        if score is None or abs(score - expected(number)) > TOLERANCE:
            wrong += 1
            examples.append(f"wrong: event {number} at {record.place}: {record.value[:200]!r}")
            continue
        counts[number] += 1
        if number < last[record.key]:
            disordered += 1
            examples.append(f"disordered: event {number} of {record.key!r} came after {last[record.key]}")
        last[record.key] = max(number, last[record.key])
    noted, malformed = Counter(letters), set(bad)
    examples += [f"lost: event {number}" for number in sent if number not in counts][:10]
    examples += [f"event {number} came {count} times" for number, count in counts.items() if count > 1][:10]
    examples += [f"letter of a good event: {place}" for place in noted if place not in malformed][:10]
    return Verdict(
        events=len(sent),
        lost=sum(number not in counts for number in sent),
        doubled=sum(count - 1 for count in counts.values()),
        wrong=wrong,
        disordered=disordered,
        malformed=len(malformed),
        lost_letters=sum(place not in noted for place in malformed),
        doubled_letters=sum(noted[place] - 1 for place in malformed if place in noted),
        wrong_letters=sum(count for place, count in noted.items() if place not in malformed),
        examples=examples[:20],
    )


def _seen(message: Message) -> Seen:
    headers = message.headers()
    return Seen(
        _place(message),
        message.key(),
        message.value() or b"",
        headers if isinstance(headers, list) else None,
        message.timestamp()[1],
    )


def _place(message: Message) -> Place:
    partition, offset = message.partition(), message.offset()
    if partition is None or offset is None:
        raise RuntimeError("a record without a place")
    return partition, offset


class Run:
    """One run on a broker and a cluster.

    Args:
        name: `json` or `avro`.
        count: Events, the malformed ones included.
    """

    def __init__(
        self, folder: Path, broker: KafkaBroker, cluster: FlinkCluster, name: str, mode: str, count: int, rate: float
    ) -> None:
        self._broker, self._cluster, self._count, self._rate = broker, cluster, count, rate
        self._name, self._mode = name, mode
        self._config = folder / "anabranch.toml"
        self._data = folder / "stack"
        self._folder = folder
        self.faults: list[str] = []

    def go(self, tell: Callable[[str], None]) -> EventsResult:
        """Sends all events, with the faults between them, and judges."""
        with RegistryServer() as registry:
            made: Events = JsonEvents() if self._name == "json" else AvroEvents(registry, self._count)
            self._broker.create_topics(*(Topic(name, PARTITIONS) for name in (SOURCE, SCORED, LETTERS)))
            self._write_config(registry.url)
            self._anabranch("run", "--detach")
            control = JobControl(self._cluster.rest)
            self._await_running(control)
            base_ms = time.time_ns() // 1_000_000
            started_s = time.monotonic()
            sent, bad = self._send(made, base_ms, control, tell)
            scored = [_seen(message) for message in self._read(SCORED, len(sent))]
            seconds = time.monotonic() - started_s
            letters = [decode_dead_letter(each.value() or b"").source for each in self._read(LETTERS, len(bad))]
            restored = sum(
                self._cluster.rest.get(f"/jobs/{job.job_id}/checkpoints")["counts"]["restored"]
                for job in self._cluster.rest.jobs()
            )
            control.cancel(control.find())
            session = onnxruntime.InferenceSession(MODELS / "fraud" / "1" / "model.onnx")
            x = np.array([features(payment(number)) for number in range(self._count)], np.float32)
            [probabilities] = session.run(["probabilities"], {"x": x})
            verdict = judge(
                made,
                sent,
                bad,
                sorted(scored, key=lambda each: each.place),
                [(each.partition, each.offset) for each in letters],
                lambda number: float(probabilities[number][1]),
                base_ms,
            )
        return EventsResult(
            format=self._name,
            mode=self._mode,
            date=datetime.now(UTC).date().isoformat(),
            commit=checked_out_commit(),
            rate_per_s=self._rate,
            faults=self.faults,
            seconds=round(seconds, 1),
            ways=len(made.malformed),
            restored=restored,
            verdict=verdict,
        )

    def _send(
        self, made: Events, base_ms: int, control: JobControl, tell: Callable[[str], None]
    ) -> tuple[dict[int, bytes], list[Place]]:
        """Sends all events from a thread, and breaks the job from this one, with which its processes would end."""
        sent: dict[int, bytes] = {}
        bad: list[Place] = []
        faults = {self._count // 4: self._kill, self._count // 2: self._rescale, 3 * self._count // 4: self._kill}
        with ThreadPoolExecutor(1) as beside:
            sending = beside.submit(self._send_all, made, base_ms, sent, bad)
            for number, fault in faults.items():
                while len(sent) + len(bad) < number and not sending.done():
                    time.sleep(0.05)
                fault(control, tell)
            sending.result()
        return sent, bad

    def _send_all(self, made: Events, base_ms: int, sent: dict[int, bytes], bad: list[Place]) -> None:
        producer = Producer({"bootstrap.servers": self._broker.bootstrap_servers, "linger.ms": 5})
        ways = list(made.malformed.values())
        began_s = time.monotonic()
        for number in range(self._count):
            key = payment(number)["user"]["id"].encode()
            if number % EVERY_BAD == EVERY_BAD - 1:
                value = ways[number // EVERY_BAD % len(ways)]
                producer.produce(SOURCE, value, key, on_delivery=lambda _, at: bad.append(_place(at)))
            else:
                sent[number] = key
                producer.produce(SOURCE, made.event(number), key, headers=HEADERS, timestamp=base_ms + number)
            producer.poll(0)
            ahead_s = (number + 1) / self._rate - (time.monotonic() - began_s)
            if ahead_s > 0.01:
                time.sleep(ahead_s)
        producer.flush()

    def _kill(self, control: JobControl, tell: Callable[[str], None]) -> None:
        self._await_running(control)
        before = self._completed(control)
        while self._completed(control) < before + 2:
            time.sleep(0.2)
        self._cluster.kill_task_manager(next(iter(self._cluster.task_managers)))
        self._cluster.add_task_manager()
        self._note("a TaskManager was killed", tell)

    def _completed(self, control: JobControl) -> int:
        found = self._cluster.rest.get(f"/jobs/{control.find().job_id}/checkpoints")
        return int(found["counts"]["completed"])

    def _rescale(self, control: JobControl, tell: Callable[[str], None]) -> None:
        self._await_running(control)
        self._anabranch("rescale", "3")
        self._note("`anabranch rescale 3`, from 2 tasks", tell)

    def _note(self, fault: str, tell: Callable[[str], None]) -> None:
        self.faults.append(fault)
        tell(fault)

    def _await_running(self, control: JobControl) -> None:
        end_s = time.monotonic() + _TIMEOUT_S
        while True:
            job = control.find()
            if job.state == "RUNNING" and not job.is_starting:
                return
            if time.monotonic() > end_s:
                raise TimeoutError(f"the job does not run: {job.state}")
            time.sleep(0.2)

    def _read(self, topic: str, count: int) -> list[Message]:
        """Returns the committed records of a topic, once there are that many and no more come."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._broker.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        found: list[Message] = []
        end_s, quiet = time.monotonic() + _TIMEOUT_S, 0
        while (len(found) < count and time.monotonic() < end_s) or quiet < _QUIET:
            messages = consumer.consume(1000, 1.0)
            quiet = 0 if messages else quiet + 1
            found += messages
        consumer.close()
        for message in found:
            if message.error() is not None:
                raise RuntimeError(str(message.error()))
        return found

    def _write_config(self, registry_url: str) -> None:
        self._config.write_text(
            f"""
[kafka]
bootstrap_servers = "{self._broker.bootstrap_servers}"
requests_topic = "requests"
responses_topic = "responses"
errors_topic = "{LETTERS}"
group_id = "events"

[job]
name = "events"
parallelism = 2
execution_mode = "{self._mode}"
delivery = "exactly-once"
checkpoint_interval_ms = 1000
checkpoint_dir = "{(self._folder / "state").as_uri()}"

[models]
repository = "{MODELS}"

[registry]
url = "{registry_url}"

[[flow]]
from = "{SOURCE}"
to = "{SCORED}"
format = "{self._name}"
model = "fraud"
inputs.x = ["amount", "user.limit", "user.is_new", {{ path = "card.country", enum = {json.dumps(COUNTRIES)} }}]
outputs."fraud.score" = "probabilities[1]"
outputs."fraud.label" = "label"
order = "key"
"""
        )

    def _anabranch(self, *words: str) -> None:
        options = ["--config", str(self._config), "--data-dir", str(self._data), "--flink-url", self._cluster.url]
        subprocess.run(
            [sys.executable, "-m", "anabranch", *words, *options], check=True, stdin=subprocess.DEVNULL, timeout=400
        )


def run(name: str, mode: str, count: int, rate: float, folder: Path, tell: Callable[[str], None]) -> EventsResult:
    """Runs once in an empty folder."""
    with KafkaBroker(folder / "kafka") as broker, FlinkCluster(folder / "flink", task_managers=2, slots=2) as cluster:
        return Run(folder, broker, cluster, name, mode, count, rate).go(tell)


def main() -> int:
    """Runs, prints, and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.events", description=__doc__)
    parser.add_argument("--format", choices=("json", "avro"), default="json")
    parser.add_argument("--mode", choices=("thread", "process"), default="thread")
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=RATE_PER_S, help="events per second")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="events-") as name:
        result = run(
            arguments.format,
            arguments.mode,
            arguments.events,
            arguments.rate,
            Path(name),
            lambda line: print(line, flush=True),
        )
    path = arguments.results / f"events-{arguments.format}-{arguments.mode}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
    return int(not result.verdict.is_clean)


if __name__ == "__main__":
    sys.exit(main())
