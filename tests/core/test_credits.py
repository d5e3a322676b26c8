"""Credits: how many records are under way, and to which readers."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from anabranch.operators.core.scheduling.credits import Credits
from tests.exchange_study import study
from tests.planted import mutated

NOW_MS = 1_000_000.0


def filled(credit: Credits, now_ms: float = NOW_MS) -> list[tuple[int, int]]:
    """Tickets and readers of the records that leave at once."""
    sent = []
    while credit.has_room:
        sent.append(credit.send(now_ms))
    return sent


def returned(credit: Credits, sent: list[tuple[int, int]], waited_ms: float, ran_ms: float = 10.0) -> None:
    for ticket, reader in sent:
        credit.returned(ticket, reader, ran_ms, ran_ms, NOW_MS + waited_ms + ran_ms)


def grown(readers: int, senders: int = 1, ran_ms: float = 10.0) -> Credits:
    """Credits of a sender whose records never waited."""
    credit = Credits(readers, senders)
    for _ in range(200):
        returned(credit, filled(credit), 0.0, ran_ms)
    return credit


@pytest.mark.parametrize(("ran_ms", "per_reader"), [(1.0, 4), (20.0, 4), (21.0, 3), (30.0, 3), (60.0, 2), (61.0, 1)])
def test_credits_of_a_lone_sender_are_one_to_four_per_reader(ran_ms: float, per_reader: int) -> None:
    sent = filled(grown(10, 10, ran_ms))
    assert len(sent) == max(10 * per_reader, 11)
    assert max(Counter(reader for _, reader in sent).values()) == max(per_reader, 2)


def test_credits_of_many_senders_shrink_to_their_share() -> None:
    credit = grown(10, 5)
    for _ in range(200):
        returned(credit, filled(credit), 1_000.0)
    assert len(filled(credit)) == 2


@pytest.mark.parametrize(("slack_ms", "left"), [(5.0, 2), (100.0, 40)])
def test_credits_take_the_usual_wait_at_an_idle_reader_for_none(slack_ms: float, left: int) -> None:
    credit = Credits(10, 5, slack_ms=slack_ms)
    for _ in range(200):
        returned(credit, filled(credit), 100.0)
    assert len(filled(credit)) == left


def test_credits_fill_all_stages_of_a_model() -> None:
    assert len(filled(Credits(1, 1, 0, 4))) == 5


def test_credits_choose_the_least_busy_of_all_readers() -> None:
    credit = Credits(100, 1)
    sent = filled(credit)
    assert {reader for _, reader in sent} == set(range(100))
    free = next(each for each in sent if each[1] == 57)
    returned(credit, [free], 0.0)
    assert credit.send(NOW_MS)[1] == 57


def test_credits_avoid_a_reader_that_kept_a_record_waiting() -> None:
    credit = grown(3)
    for waits_ms in (0.0, 500.0, 500.0):
        returned(credit, [credit.send(NOW_MS)], waits_ms)
    readers = [credit.send(NOW_MS + 20)[1] for _ in range(4)]
    assert len(set(readers)) == 1
    assert credit.wait_ms(NOW_MS + 20) > 20.0
    assert len({credit.send(NOW_MS + 2_000)[1] for _ in range(2)}) == 2


def test_credits_avoid_the_own_task_but_as_the_only_one() -> None:
    credit = Credits(2, 2, 0)
    assert [credit.send(NOW_MS, 0)[1] for _ in range(3)] == [1, 1, 1]
    assert Credits(1, 1).send(NOW_MS, 0)[1] == 0


def test_credits_lost_ticket_makes_room_again() -> None:
    credit = Credits(1, 1)
    sent = filled(credit)
    assert credit.expire(NOW_MS + 9_000) == 0
    assert not credit.has_room
    assert credit.expire(NOW_MS + 11_000) == 2
    assert (credit.has_room, credit.under_way) == (True, 0)
    returned(credit, sent, 12_000.0)
    assert credit.under_way == 0, "a late ticket gives nothing back"
    assert len(filled(credit)) == 2


def test_credits_if_all_readers_are_deaf_are_not_bounded() -> None:
    credit = Credits(2, 2)
    for lease in range(2):
        filled(credit, NOW_MS + 11_000 * lease)
        credit.expire(NOW_MS + 11_000 * (lease + 1))
    assert credit.deaf == 2
    sent = [credit.send(NOW_MS) for _ in range(100)]
    assert credit.has_room
    assert Counter(reader for _, reader in sent) == {0: 50, 1: 50}
    returned(credit, sent[:1], 0.0)
    assert (credit.deaf, credit.has_room) == (1, False)


def test_credits_of_a_deaf_reader_take_no_room_from_others() -> None:
    credit = Credits(2, 2)
    at_ms = NOW_MS
    for _ in range(4):
        sent = filled(credit, at_ms)
        returned(credit, [each for each in sent if each[1] == 1], 0.0)
        at_ms += 11_000
        credit.expire(at_ms)
    assert credit.deaf == 1
    for _ in range(20):
        sent = filled(credit, at_ms)
        assert any(reader == 1 for _, reader in sent)
        returned(credit, [each for each in sent if each[1] == 1], 0.0)
    assert credit.under_way < 10


def test_credits_late_ticket_shows_that_a_reader_hears() -> None:
    credit = Credits(1, 1)
    sent = filled(credit)
    credit.expire(NOW_MS + 11_000)
    assert (credit.deaf, credit.under_way) == (1, 0)
    returned(credit, sent[:1], 20_000.0)
    assert (credit.deaf, credit.under_way) == (0, 0)


@pytest.mark.parametrize("reader", [-1, 0, 2])
def test_credits_ticket_of_another_reader_is_ignored(reader: int) -> None:
    credit = Credits(2, 1)
    ticket, chosen = credit.send(NOW_MS)
    credit.returned(ticket, 1 - chosen if reader == 0 else reader, 1.0, 1.0, NOW_MS)
    assert credit.under_way == 1


def test_credits_ticket_returned_twice_counts_once() -> None:
    credit = Credits(2, 1)
    sent = filled(credit)
    returned(credit, [sent[0], sent[0]], 0.0)
    assert credit.under_way == len(sent) - 1
    assert len(filled(credit)) <= 2, "one ticket makes room for one, and lets the window grow by one"


@pytest.mark.parametrize(("tasks", "ran_ms"), [(2, 20.0), (10, 20.0), (10, 2.0)])
def test_credits_of_saturated_tasks_keep_readers_busy(tasks: int, ran_ms: float) -> None:
    seen = study(tasks, ran_ms, senders=tasks)
    assert seen.busy > 0.95
    assert seen.held < 5.5
    assert seen.urgent_p99_ms < 14 * ran_ms


PLANTED: tuple[tuple[AbstractContextManager[Any], Callable[[], None]], ...] = (
    (mutated(Credits, "expire", "del self._under_way[ticket]", "..."), test_credits_lost_ticket_makes_room_again),
    (
        mutated(Credits, "returned", "del self._under_way[ticket]", "..."),
        test_credits_ticket_returned_twice_counts_once,
    ),
    (
        mutated(Credits, "returned", "if sent is None or sent[0] != reader", "if sent is None"),
        partial(test_credits_ticket_of_another_reader_is_ignored, 0),
    ),
    (mutated(Credits, "_choose", "load < least", "best < 0"), test_credits_choose_the_least_busy_of_all_readers),
)


@pytest.mark.parametrize(("defect", "check"), PLANTED)
def test_credits_planted_defect_is_caught(defect: AbstractContextManager[Any], check: Callable[[], None]) -> None:
    with defect, pytest.raises((AssertionError, KeyError)):
        check()


def test_credits_learn_the_time_of_a_row_in_the_slowest_stage() -> None:
    credit = Credits(1, 1)
    assert credit.row_ms == 0.0
    for _ in range(100):
        ticket, reader = credit.send(NOW_MS, rows=8)
        credit.returned(ticket, reader, 30.0, 16.0, NOW_MS + 50)
    assert credit.row_ms == pytest.approx(2.0)
