"""The checker of the run with events finds each violation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.events import HEADERS, AvroEvents, Events, JsonEvents, Seen, Verdict, judge, label_of, payment
from tests.schema_registry import RegistryServer

COUNT, BASE_MS, SCORE = 12, 1_000, 0.75
Records = list[Seen]


def scored(number: int, score: float = SCORE) -> Seen:
    value = JsonEvents().event(number)
    new = b'{"old": true,"score":%s,"label":"%s"}' % (str(score).encode(), label_of(score).encode())
    value = value.replace(b'{"old": true}', new)
    return Seen((0, number), b"user", value, HEADERS, BASE_MS + number)


def verdict(records: Records, letters: list[tuple[int, int]] | None = None) -> Verdict:
    letters = [(1, 7)] if letters is None else letters
    return judge(
        JsonEvents(), dict.fromkeys(range(COUNT), b"user"), [(1, 7)], records, letters, lambda _: SCORE, BASE_MS
    )


def clean() -> Records:
    return [scored(number) for number in range(COUNT)]


def test_events_of_a_clean_run_have_no_violation() -> None:
    found = verdict(clean())
    assert found.is_clean, found
    assert (found.events, found.malformed) == (COUNT, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda records: records.pop(3), {"lost": 1}),
        (lambda records: records.append(records[-1]), {"doubled": 1}),
        (lambda records: records.insert(0, records.pop()), {"disordered": COUNT - 1}),
        (lambda records: records.append(scored(99)), {"wrong": 1}),
    ],
    ids=["lost", "doubled", "disordered", "unknown"],
)
def test_events_checker_finds_a_planted_violation(
    change: Callable[[Records], object], expected: dict[str, int]
) -> None:
    records = clean()
    change(records)
    found = verdict(records)
    assert {name: getattr(found, name) for name in expected} == expected
    assert not found.is_clean
    assert found.examples


@pytest.mark.parametrize(
    "planted",
    [
        {"key": b"other"},
        {"headers": HEADERS[:-1]},
        {"headers": None},
        {"value": scored(5).value.replace(b'"twice":1', b'"twice":3')},
        {"value": scored(5).value.replace(b'"e" : 1E5', b'"e" : 100000.0')},
        {"value": scored(5, SCORE + 1e-5).value},
        {"value": scored(5).value.replace(b'"fraud"}', b'"ok"}')},
        {"value": JsonEvents().event(5)},
    ],
    ids=["key", "a header", "headers", "a field", "a number's form", "the score", "the label", "no score"],
)
def test_events_checker_finds_a_wrong_record(planted: dict[str, Any]) -> None:
    records = clean()
    records[5] = replace(records[5], **planted)
    found = verdict(records)
    assert (found.wrong, found.lost) == (1, 1)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [([], "lost_letters"), ([(1, 7)] * 2, "doubled_letters"), ([(1, 7), (0, 3)], "wrong_letters")],
)
def test_events_checker_counts_dead_letters(letters: list[tuple[int, int]], expected: str) -> None:
    found = verdict(clean(), letters)
    assert getattr(found, expected) == 1
    assert not found.is_clean


def test_events_are_malformed_in_twenty_ways_and_more() -> None:
    with RegistryServer() as registry:
        formats: list[Events] = [JsonEvents(), AvroEvents(registry, 100)]
        for events in formats:
            assert len(set(events.malformed.values())) == len(events.malformed) >= 20
            assert not set(events.malformed.values()) & {events.event(number) for number in range(100)}


def test_avro_events_come_in_all_versions_of_their_schema() -> None:
    with RegistryServer() as registry:
        events = AvroEvents(registry, 300)
        numbers = [events.event(number)[4] for number in range(300)]
        assert set(numbers) == {1, 2, 3}
        assert numbers != sorted(numbers), "two versions are never sent at the same time"
        # Without predictions.
        assert events.score_of(0, events.event(0)) is None
        assert payment(0)["id"].encode() in events.event(0)
