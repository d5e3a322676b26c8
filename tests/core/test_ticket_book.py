"""A task's tickets: to which operator they belong, and which attempt they are of."""

import pytest

from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.transport.ticket import Ticket, open_ticket
from anabranch.operators.core.transport.ticket_book import TicketBook

NOW_MS = 1_000_000.0
TOKEN, OTHER = b"attempt1", b"attempt2"


def book(*readers: int) -> tuple[TicketBook, list[Credits]]:
    made, credit = TicketBook(TOKEN, bytes((127, 0, 0, 1)), 7), [Credits(each, 1) for each in readers]
    assert [made.add(each) for each in credit] == list(range(len(readers)))
    return made, credit


def issued(made: TicketBook, target: int) -> Ticket:
    return open_ticket(made.issue(target, NOW_MS))[0]


def test_book_ticket_comes_back_to_its_operator() -> None:
    made, (first, second) = book(2, 3)
    ticket = issued(made, 1)
    assert (ticket.target, ticket.token, ticket.port) == (1, TOKEN, 7)
    assert (first.under_way, second.under_way, made.is_empty) == (0, 1, False)
    assert made.take_back(ticket.after(40.0).encode_return(), NOW_MS + 50)
    assert (second.under_way, second.run_ms, made.way_ms, made.is_empty) == (0, 40.0, 50.0, True)


@pytest.mark.parametrize("change", [{"token": OTHER}, {"target": 2}, {"reader": 9}, {"number": 9}])
def test_book_ticket_of_another_attempt_is_not_counted(change: dict[str, int]) -> None:
    made, (credit,) = book(2)
    made.take_back(issued(made, 0)._replace(**change).encode_return(), NOW_MS)  # type: ignore[arg-type]
    assert credit.under_way == 1


def test_book_noise_is_not_a_ticket() -> None:
    made, _ = book(2)
    assert not made.take_back(b"noise", NOW_MS)


def test_book_lost_tickets_show_deaf_readers() -> None:
    made, (credit,) = book(1)
    issued(made, 0)
    late = issued(made, 0)
    made.expire(NOW_MS + 60_000)
    assert (credit.under_way, made.deaf) == (0, 1)
    made.take_back(late.encode_return(), NOW_MS + 61_000)
    assert made.deaf == 0
