"""Dead letters on the errors topic: finds them, and sends their requests again.

The id of a letter is its place on the errors topic, `PARTITION-OFFSET`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from anabranch.messaging.errors import LetterMissing, OriginalMissing
from anabranch.schemas.errors import RequestError, UnknownModel, UnknownVersion, error_with_code
from anabranch.schemas.wire.dead_letters import DeadLetter, DeadLetterSource, decode_dead_letter

if TYPE_CHECKING:
    from anabranch.flink_job.config import Config
    from anabranch.messaging.record_store import Headers, RecordStore, StoredRecord

#: Records of a partition that are read at once, from its end.
_WINDOW = 200
_MOST_SCANNED = 20_000
_ID = re.compile(r"(\d{1,9})-(\d{1,18})")


class ListedLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter without the bytes of its request.

    Attributes:
        time_ms: Time of the failure since the epoch.
        original_bytes: Size of the request; None if the letter does not repeat it.
        is_curable: False if another attempt fails again, until the request changes.
    """

    id: str
    time_ms: int
    request_id: str
    code: str
    message: str
    stage: str
    model_name: str
    model_version: str
    source: DeadLetterSource
    original_bytes: int | None
    is_curable: bool

    @property
    def model(self) -> str:
        """`NAME/VERSION`; empty if unknown."""
        return f"{self.model_name}/{self.model_version}" if self.model_name else ""


class LetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Choice of dead letters; empty takes all.

    Attributes:
        codes: Codes of errors.
        models: Names of models.
    """

    codes: Sequence[str] = ()
    models: Sequence[str] = ()

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is chosen."""
        return (not self.codes or letter.code in self.codes) and (not self.models or letter.model_name in self.models)


class FailedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Record of a failed request, as it was sent.

    Attributes:
        is_whole: True if it is the record itself, with all headers; otherwise key and headers are the letter's.
    """

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    is_whole: bool


class DeadLetters:
    """The dead letters of a job."""

    def __init__(self, store: RecordStore, errors_topic: str) -> None:
        self._store = store
        self._topic = errors_topic

    def last(self, limit: int, chosen: LetterFilter | None = None) -> list[ListedLetter]:
        """Return the last letters, the newest first; looks at the last 20,000 of each partition."""
        chosen = chosen or LetterFilter()
        found: list[ListedLetter] = []
        for partition, (begin, end) in self._store.ranges(self._topic).items():
            stop, least = end, max(begin, end - _MOST_SCANNED)
            here: list[ListedLetter] = []
            while stop > least and len(here) < limit:
                start = max(least, stop - _WINDOW)
                records = self._store.read(self._topic, partition, start, stop)
                here = [_listed(record, letter) for record, letter in _decoded(records) if chosen.takes(letter)] + here
                stop = start
            found += here[-limit:]
        return sorted(found, key=lambda each: (each.time_ms, each.id), reverse=True)[:limit]

    def find(self, letter_id: str) -> ListedLetter:
        """Return a letter by its id.

        Raises:
            LetterMissing: There is none.
        """
        return _listed(*self._read(letter_id))

    def original(self, letter_id: str) -> FailedRequest:
        """Return the request of a letter: its own record, or what the letter repeats of it.

        Raises:
            LetterMissing: There is no such letter.
            OriginalMissing: Neither has the bytes.
        """
        record, letter = self._read(letter_id)
        source = letter.source
        for own in self._store.read(source.topic, source.partition, source.offset, source.offset + 1):
            # A topic that was made anew has other records at the same places.
            same = own.value == letter.original if letter.original else own.timestamp_ms == source.timestamp_ms
            if own.value is not None and same:
                return FailedRequest(
                    topic=source.topic, key=own.key, value=own.value, headers=own.headers, is_whole=True
                )
        if letter.original is None:
            raise OriginalMissing(
                f"the request of letter {letter_id} is gone: the letter does not repeat it, and Kafka has removed "
                f"record {source.partition}-{source.offset} of {source.topic}; ask its sender"
            )
        return FailedRequest(
            topic=source.topic, key=record.key, value=letter.original, headers=record.headers, is_whole=False
        )

    def replay(self, letter_id: str) -> FailedRequest:
        """Send the request of a letter again, and return it."""
        request = self.original(letter_id)
        self._store.append(request.topic, request.key, request.value, request.headers)
        return request

    def _read(self, letter_id: str) -> tuple[StoredRecord, DeadLetter]:
        match = _ID.fullmatch(letter_id)
        if match:
            partition, offset = int(match[1]), int(match[2])
            begin, end = self._store.ranges(self._topic).get(partition, (0, 0))
            if begin <= offset < end:
                for found in _decoded(self._store.read(self._topic, partition, offset, offset + 1)):
                    return found
        raise LetterMissing(
            f"no dead letter {letter_id!r} on {self._topic}: Kafka may have removed it; see `anabranch errors list`"
        )


@contextmanager
def open_letters(config: Config) -> Iterator[DeadLetters]:
    """Connect to the errors topic of a job; raise `BrokerUnreachable`."""
    from anabranch.flink_job.kafka.properties import python_client_options  # noqa: PLC0415 - needs msgspec's TOML
    from anabranch.messaging.record_store import KafkaRecords  # noqa: PLC0415 - as above

    kafka = config.kafka
    store = KafkaRecords(
        kafka.bootstrap_servers, python_client_options(kafka), max_record_bytes=kafka.record_limit_bytes
    )
    try:
        yield DeadLetters(store, kafka.errors_topic)
    finally:
        store.close()


def is_curable(code: str) -> bool:
    """Tell whether a request may succeed unchanged, once its cause is mended."""
    error = error_with_code(code, "")
    return not isinstance(error, RequestError) or isinstance(error, (UnknownModel, UnknownVersion))


def _decoded(records: Sequence[StoredRecord]) -> Iterator[tuple[StoredRecord, DeadLetter]]:
    for record in records:
        try:
            yield record, decode_dead_letter(record.value or b"")
        except msgspec.MsgspecError:
            continue


def _listed(record: StoredRecord, letter: DeadLetter) -> ListedLetter:
    return ListedLetter(
        id=f"{record.partition}-{record.offset}",
        time_ms=record.timestamp_ms,
        request_id=letter.id,
        code=letter.code,
        message=letter.message,
        stage=letter.stage,
        model_name=letter.model_name,
        model_version=letter.model_version,
        source=letter.source,
        original_bytes=None if letter.original is None else len(letter.original),
        is_curable=is_curable(letter.code),
    )
