"""Dead letters: listing, choice, and replay; over records in memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from anabranch import dead_letters
from anabranch.cli import app
from anabranch.dead_letters import DeadLetters, LetterFilter, is_curable
from anabranch.messaging.errors import LetterMissing, NotSent, OriginalMissing
from anabranch.messaging.record_store import Headers, StoredRecord
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Failure
from anabranch.schemas.wire.dead_letters import encode_dead_letter

ERRORS, REQUESTS = "errors", "requests"
HEADERS: Headers = (("reply-partition", b"7"),)


class MemoryRecords:
    """Records by topic and partition; those before `begin` are removed."""

    def __init__(self) -> None:
        self.topics: dict[str, dict[int, list[StoredRecord]]] = {}
        self.begin = 0
        self.refuses = False

    def ranges(self, topic: str) -> dict[int, tuple[int, int]]:
        return {number: (self.begin, len(records)) for number, records in self.topics.get(topic, {}).items()}

    def read(self, topic: str, partition: int, start: int, stop: int) -> list[StoredRecord]:
        return self.topics.get(topic, {}).get(partition, [])[max(start, self.begin) : stop]

    def append(self, topic: str, key: bytes | None, value: bytes, headers: Headers) -> None:
        if self.refuses:
            raise NotSent("the broker did not take the request")
        self.add(topic, 0, 0, key, value, headers)

    def add(
        self, topic: str, partition: int, time_ms: int, key: bytes | None, value: bytes, headers: Headers = ()
    ) -> int:
        records = self.topics.setdefault(topic, {}).setdefault(partition, [])
        records.append(StoredRecord(partition, len(records), time_ms, key, value, headers))
        return len(records) - 1


class Job:
    """Fails requests."""

    def __init__(self) -> None:
        self.store = MemoryRecords()
        self.letters = DeadLetters(self.store, ERRORS)

    def fail(
        self,
        name: str,
        code: str = "overloaded",
        model: str = "m",
        message: str = "why",
        *,
        partition: int = 0,
        big: bool = False,
    ) -> str:
        """Writes a request and its letter; returns the letter's id."""
        self.time_ms = getattr(self, "time_ms", 0) + 10
        offset = self.store.add(REQUESTS, 1, self.time_ms, b"key", name.encode(), HEADERS)
        source = Source(1, offset, self.time_ms)
        letter = encode_dead_letter(
            REQUESTS, source, name, Failure(code, message, "queue", model, "1"), None if big else name.encode()
        )
        at = self.store.add(ERRORS, partition, self.time_ms + 5, name.encode(), letter, (("traceparent", b"t"),))
        return f"{partition}-{at}"


@pytest.fixture
def job() -> Job:
    return Job()


def names(job: Job, limit: int = 100, **chosen: Any) -> list[str]:
    return [each.request_id for each in job.letters.last(limit, LetterFilter(**chosen))]


def test_letters_last_is_newest_first_over_partitions(job: Job) -> None:
    for number in range(9):
        job.fail(f"r{number}", partition=number % 3)
    assert names(job, 4) == ["r8", "r7", "r6", "r5"]
    assert len(names(job)) == 9
    assert DeadLetters(MemoryRecords(), ERRORS).last(3) == []


def test_letters_filter_looks_behind_the_newest_window(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "_WINDOW", 4)
    wanted = [job.fail("old", "unknown_model", "other") for _ in range(2)]
    for number in range(30):
        job.fail(f"r{number}")
    assert [each.id for each in job.letters.last(2, LetterFilter(codes=["unknown_model"]))] == wanted[::-1]
    assert names(job, models=["other"]) == ["old", "old"]
    assert names(job, models=["other"], codes=["overloaded"]) == []
    monkeypatch.setattr(dead_letters, "_MOST_SCANNED", 30)
    assert names(job, models=["other"]) == []


def test_letters_foreign_records_are_skipped(job: Job) -> None:
    job.store.add(ERRORS, 0, 1, None, b"{")
    letter = job.fail("r")
    assert names(job) == ["r"]
    with pytest.raises(LetterMissing):
        job.letters.find("0-0")
    assert job.letters.find(letter).original_bytes == 1


@pytest.mark.parametrize("wrong", ["0-9", "5-0", "x", "", "-1-0", "0-0-0"])
def test_letters_find_unknown_id_says_where_to_look(job: Job, wrong: str) -> None:
    job.fail("r")
    with pytest.raises(LetterMissing, match="see `anabranch errors list`"):
        job.letters.find(wrong)


def test_letters_replay_sends_the_record_itself(job: Job) -> None:
    letter = job.fail("r")
    sent = job.letters.replay(letter)
    assert sent.is_whole
    [again] = job.store.topics[REQUESTS][0]
    assert (again.key, again.value, again.headers) == (b"key", b"r", HEADERS)


def test_letters_replay_of_a_removed_record_uses_the_letter(job: Job) -> None:
    letter = job.fail("r")
    # A topic of the same name that was made anew.
    job.store.topics[REQUESTS] = {1: [StoredRecord(1, 0, 0, b"x", b"another", ())]}
    sent = job.letters.replay(letter)
    assert (sent.is_whole, sent.key, sent.value, sent.headers) == (False, b"r", b"r", (("traceparent", b"t"),))


def test_letters_large_request_is_read_from_its_topic(job: Job) -> None:
    letter = job.fail("r", big=True)
    assert job.letters.find(letter).original_bytes is None
    assert job.letters.original(letter).value == b"r"
    job.store.topics[REQUESTS] = {1: [StoredRecord(1, 0, 0, b"x", b"another", ())]}
    with pytest.raises(OriginalMissing, match="record 1-0 of requests"):
        job.letters.replay(letter)


@pytest.mark.parametrize(
    ("code", "curable"),
    [("overloaded", True), ("unknown_model", True), ("internal_error", True), ("wrong_shape", False), ("new", True)],
)
def test_letters_curable_codes_are_not_the_senders_fault(code: str, curable: bool) -> None:
    assert is_curable(code) == curable


def run(job: Job, monkeypatch: pytest.MonkeyPatch, *arguments: str, answer: str = "") -> Any:
    @contextmanager
    def opened(_: object) -> Iterator[DeadLetters]:
        yield job.letters

    monkeypatch.setattr(dead_letters, "open_letters", opened)
    arguments = ("errors", *arguments, "--bootstrap-servers", "none:1")
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=answer)


def test_errors_list_command_filters_and_prints_json(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No dead letters" in run(job, monkeypatch, "list").stdout
    job.fail("r[red]", "unknown_model")
    job.fail("s")
    assert "r[red]" in run(job, monkeypatch, "list").stdout
    listed = json.loads(run(job, monkeypatch, "list", "--code", "overloaded", "-o", "json").stdout)
    assert [each["request_id"] for each in listed] == ["s"]


def test_errors_show_command_saves_the_request(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    letter = job.fail("r", "wrong_shape")
    said = run(job, monkeypatch, "show", letter, "--save", str(tmp_path / "bytes")).stdout
    assert "fails again, unless it is changed" in said
    assert (tmp_path / "bytes").read_bytes() == b"r"
    assert run(job, monkeypatch, "show", letter, "--save", "-").stdout_bytes == b"r"
    failed = run(job, monkeypatch, "show", letter, "--save", str(tmp_path / "no" / "bytes"))
    assert (failed.exit_code, "unusable_argument: cannot write" in failed.stderr) == (1, True)


def test_errors_replay_command_asks_before_it_sends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [job.fail(name, code) for name, code in (("a", "overloaded"), ("b", "wrong_shape"), ("c", "overloaded"))]
    refused = run(job, monkeypatch, "replay", *ids, answer="n\n")
    assert refused.exit_code == 1
    assert "3 requests to send again: 2 overloaded, 1 wrong_shape; 1 of them fail again" in refused.stderr
    assert 0 not in job.store.topics[REQUESTS]
    done = run(job, monkeypatch, "replay", "--code", "overloaded", answer="y\n")
    assert done.exit_code == 0, done.stderr
    assert [record.value for record in job.store.topics[REQUESTS][0]] == [b"a", b"c"], "the oldest first"


def test_errors_replay_command_reports_each_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = job.fail("a")
    job.store.refuses = True
    done = run(job, monkeypatch, "replay", letter, "--yes", "-o", "json")
    assert done.exit_code == 1
    problem = "the broker did not take the request"
    assert json.loads(done.stdout) == [{"id": letter, "sent": False, "problem": problem}]
    for both in ((), (letter, "--code", "overloaded")):
        assert "give ids of letters" in run(job, monkeypatch, "replay", *both).stderr
