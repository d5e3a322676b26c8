import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from bench.harness.messages import ServeCommand
from bench.systems.serving import kafka_bridge

COMMAND = ServeCommand(
    kind="",
    bootstrap_servers="",
    requests_topic="",
    responses_topic="",
    errors_topic="",
    group_id="",
    repository="",
)


class Record:
    def __init__(self, number: int) -> None:
        self._number = number

    def key(self) -> bytes:
        return b"key-%d" % self._number

    def value(self) -> bytes:
        return b"%d" % self._number


class Stopped(Exception):
    pass


class Ends:
    """Kafka with a few requests on it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self._batches: Iterator[list[Record]] = iter([[Record(1), Record(2)], [], [Record(3)]])

    def take(self, most: int) -> list[Record]:
        return next(self._batches, [])

    def give(self, key: bytes, answer: bytes) -> None:
        self.log.append((key, answer))

    def note_deliveries(self) -> None:
        pass

    def commit(self) -> None:
        self.log.append("commit")
        if len(self.log) > 3:
            raise Stopped


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    ends = Ends()
    monkeypatch.setattr(kafka_bridge, "KafkaEnds", lambda command: ends)
    monkeypatch.setattr(kafka_bridge, "COMMIT_INTERVAL_S", 0.05)
    return ends


def test_bridge_commits_after_all_answers(ends: Ends) -> None:
    in_flight = most_in_flight = 0

    async def ask(message: bytes) -> tuple[bytes | None, bytes]:
        nonlocal in_flight, most_in_flight
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await asyncio.sleep(0.1)  # longer than the interval
        in_flight -= 1
        return (b"own" if message == b"3" else None), b"answer to " + message

    with pytest.raises(Stopped):
        asyncio.run(kafka_bridge.carry(COMMAND, ask, 2))
    answers = [(b"key-1", b"answer to 1"), (b"key-2", b"answer to 2"), (b"own", b"answer to 3")]
    assert [entry for entry in ends.log if entry != "commit"] == answers
    assert ends.log[-1] == "commit"
    assert most_in_flight == 2


def test_bridge_failed_request_ends_it(ends: Ends) -> None:
    async def ask(message: bytes) -> tuple[bytes | None, bytes]:
        raise ValueError("no server")

    with pytest.raises(ExceptionGroup) as failed:
        asyncio.run(kafka_bridge.carry(COMMAND, ask, 2))
    assert failed.group_contains(ValueError, match="no server")
    assert ends.log == []
