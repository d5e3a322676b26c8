"""Sends bad requests, and checks their answers and dead letters."""

import time
from dataclasses import dataclass
from typing import Any

import kafka
import msgspec

from anabranch.demo.bad_requests import BadRequest
from anabranch.flink_job.config import KafkaConfig
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.limits import KAFKA_FRAMING_BYTES
from anabranch.schemas.messages import ErrorResponse
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter

#: Largest growth of a value by base64 and the framing of its record.
_GROWTH = 2

Place = tuple[int, int]


@dataclass(frozen=True)
class ErrorOutcome:
    """The outcome of a bad request.

    Attributes:
        code: The code in the dead letter, if any.
        problem: The difference from the expected outcome, if any.
    """

    request: BadRequest
    code: str
    message: str
    problem: str


@dataclass
class _Seen:
    """Answers by record key, and dead letters by the partition and offset of their request."""

    answers: dict[str, list[bytes]]
    letters: dict[Place, DeadLetter]


def send_and_check(settings: KafkaConfig, requests: list[BadRequest], timeout_s: float) -> list[ErrorOutcome]:
    """Send all requests, and wait until each has the expected outcome or the time is up.

    Raises:
        kafka.errors.KafkaError: The broker does not answer.
    """
    consumer = _open_at_end(settings)
    try:
        places = _send(settings, requests)
        seen = _Seen({}, {})
        deadline_s = time.monotonic() + timeout_s
        while True:
            outcomes = [_judge(request, place, seen) for request, place in zip(requests, places, strict=True)]
            if time.monotonic() >= deadline_s or not any(outcome.problem for outcome in outcomes):
                return outcomes
            for partition, records in consumer.poll(timeout_ms=200).items():
                for record in records:
                    _note(seen, partition.topic == settings.errors_topic, record)
    finally:
        consumer.close()


def _open_at_end(settings: KafkaConfig) -> kafka.KafkaConsumer:
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        metrics_enabled=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=_GROWTH * settings.max_message_bytes,
    )
    partitions = [
        kafka.TopicPartition(topic, number)
        for topic in (settings.responses_topic, settings.errors_topic)
        for number in sorted(consumer.partitions_for_topic(topic))
    ]
    consumer.assign(partitions)
    for partition, offset in consumer.end_offsets(partitions).items():
        consumer.seek(partition, offset)
    return consumer


def _send(settings: KafkaConfig, requests: list[BadRequest]) -> list[Place]:
    producer = kafka.KafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        metrics_enabled=False,
        linger_ms=0,
        max_request_size=settings.max_message_bytes + KAFKA_FRAMING_BYTES,
    )
    try:
        sent = [
            producer.send(
                settings.requests_topic,
                request.value,
                key=request.kind.encode(),
                timestamp_ms=int(time.time() * 1000) - request.age_ms,
            )
            for request in requests
        ]
        return [(record.partition, record.offset) for record in (future.get(timeout=30) for future in sent)]
    finally:
        producer.close(timeout=5)


def _note(seen: _Seen, is_letter: bool, record: Any) -> None:  # noqa: FBT001
    if not is_letter:
        seen.answers.setdefault((record.key or b"").decode(), []).append(record.value)
        return
    try:
        letter = decode_dead_letter(record.value)
    except msgspec.MsgspecError:
        return  # its request stays without a dead letter, which is reported
    seen.letters[letter.source.partition, letter.source.offset] = letter


def _judge(request: BadRequest, place: Place, seen: _Seen) -> ErrorOutcome:
    letter = seen.letters.get(place)
    if letter is None:
        return ErrorOutcome(request, "", "", "no dead letter")
    answers = seen.answers.get(request.id, []) if request.id else []
    problem = _letter_problem(request, letter) or _answer_problem(request, answers)
    return ErrorOutcome(request, letter.code, letter.message, problem)


def _letter_problem(request: BadRequest, letter: DeadLetter) -> str:
    if letter.code != request.code:
        return f"the dead letter says {letter.code}, not {request.code}"
    if letter.id != request.id:
        return f"the dead letter has the id {letter.id!r}"
    if letter.original is not None and letter.original != (request.value or b""):
        return "the dead letter holds other bytes than were sent"
    return ""


def _answer_problem(request: BadRequest, answers: list[bytes]) -> str:
    if not request.id:
        return ""
    if len(answers) != 1:
        return f"{len(answers)} answers instead of one"
    if (answers[0][:1] == b"{") != ((request.value or b"")[:1] == b"{"):
        return "the answer is not in the encoding of the request"
    try:
        answer = codec.decode_response(answers[0])
    except AnabranchError as error:
        return f"the answer cannot be read: {error}"
    if not isinstance(answer, ErrorResponse):
        return "it was answered with outputs"
    return "" if answer.code == request.code else f"the answer says {answer.code}, not {request.code}"
