"""Tickets travel from a reader back to the desk of their sender."""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.core.transport.ticket import open_ticket
from anabranch.operators.core.transport.ticket_book import TicketBook
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport import ticket_returns
from anabranch.operators.transport.endpoints import Receiver, Sender
from anabranch.operators.transport.ticket_returns import TicketDesk, TicketReturns
from anabranch.schemas.records import BatchEntry, BatchRecord, Segment, ShardRecord, Source
from tests.planted import mutated

TASK = TaskContext(0, 1, 0)
OPTIONS = TransportOptions(job="job", shares_memory=True, claim_from_bytes=1000, arena_bytes=1 << 20)
SHARD = ShardRecord(Segment(Source(0, 1, 2), "a"), b"s", (b"tensor",))
LARGE = ShardRecord(Segment(Source(0, 1, 2), "a"), b"s", (bytes(5000),))


def desk_of(readers: int = 2) -> tuple[TicketDesk, Credits, int]:
    desk, credit = TicketDesk(), Credits(readers, 1)
    return desk, credit, desk.add(credit)


def sender_of(issue: Callable[[int], bytes] | None, to: str = "infer") -> Sender:
    return Sender(OPTIONS, TASK, to, 1, Meter(), issue)


def await_return(desk: TicketDesk) -> None:
    end_s = time.monotonic() + 30
    while not desk.collect():
        assert time.monotonic() < end_s, "no ticket came back"


def look_a_while(desk: TicketDesk) -> None:
    for _ in range(20):
        desk.wait(1.0)


def test_tickets_of_records_and_claims_come_back() -> None:
    desk, credit, target = desk_of()
    receiver, sender = Receiver(OPTIONS, TASK, "infer", Meter()), sender_of(partial(desk.issue, target))
    for record in (SHARD, LARGE):
        assert not desk.collect()
        redeemed = ShardRecord.decode(receiver.redeem(sender.pack(record)))
        assert [bytes(each) for each in redeemed.tensors] == list(record.tensors)
        assert credit.under_way == 1
        receiver.begin()
        receiver.finish()
        await_return(desk)
        assert credit.under_way == 0
        assert receiver.pass_on() == b"", "a ticket comes back once"


@pytest.mark.parametrize("issue", [None, lambda _: b""])
def test_records_without_tickets_are_read_by_any_receiver(issue: Callable[[int], bytes] | None) -> None:
    """A checkpoint may hold records of a job with the other setting."""
    receiver, sender = Receiver(OPTIONS, TASK, "infer", Meter()), sender_of(issue)
    for record in (SHARD, LARGE):
        redeemed = ShardRecord.decode(receiver.redeem(sender.pack(record)))
        assert [bytes(each) for each in redeemed.tensors] == list(record.tensors)
        receiver.begin()
        receiver.finish()


def test_tickets_of_batches_avoid_a_reader() -> None:
    desk, _, target = desk_of()
    sender = sender_of(partial(desk.issue, target, avoid=0))
    batch = BatchRecord([BatchEntry(Source(0, 1, 2))], b"s", (b"tensor",))
    for _ in range(2):
        ticket, record = open_ticket(sender.pack_batch(batch))
        assert ticket.reader == 1
        assert BatchRecord.decode(record) == batch


def test_ticket_passed_on_comes_back_from_the_last_stage() -> None:
    desk, credit, target = desk_of()
    first, last = (Receiver(OPTIONS, TASK, f"stage-{index}", Meter()) for index in range(2))
    passing = sender_of(first.pass_on, "stage-1")
    first.redeem(sender_of(partial(desk.issue, target), "stage-0").pack(SHARD))
    passed_on = passing.pack(SHARD)
    first.finish()
    look_a_while(desk)
    assert credit.under_way == 1
    last.redeem(passed_on)
    last.finish()
    await_return(desk)
    assert credit.under_way == 0


def test_tickets_are_returned_with_durations_and_time() -> None:
    desk, credit, target = desk_of()
    ticket, _ = open_ticket(desk.issue(target))
    TicketReturns().send(ticket.after(40.0))
    await_return(desk)
    assert credit.run_ms == 40.0
    assert credit.wait_ms(time.time() * 1000) == 0.0


def test_tickets_of_other_attempts_and_noise_are_ignored() -> None:
    desk, credit, target = desk_of()
    ticket, _ = open_ticket(desk.issue(target))
    earlier, _ = open_ticket(ticket_of_another_attempt(target))
    returns = TicketReturns()
    # Its port may belong to the new attempt.
    returns.send(ticket._replace(token=earlier.token))
    returns.send(ticket._replace(target=7))
    returns._socket.sendto(b"noise", (socket.inet_ntoa(ticket.host), ticket.port))
    look_a_while(desk)
    assert credit.under_way == 1
    returns.send(ticket)
    await_return(desk)
    assert credit.under_way == 0


def ticket_of_another_attempt(target: int) -> bytes:
    desk, _, _ = desk_of()
    return desk.issue(target)


def test_desk_of_an_ended_task_waits_for_nothing() -> None:
    desk, _, target = desk_of()
    desk.issue(target)
    desk.let_go()
    assert not desk.collect()
    desk.wait(1.0)


def test_desk_waits_no_longer_than_tickets_usually_take() -> None:
    desk, credit, target = desk_of()
    desk.issue(target)
    end_s = time.monotonic() + 30
    while desk.wait(1.0):
        assert time.monotonic() < end_s, "it waits for ever"
    assert credit.under_way == 1


def test_desk_reports_deaf_readers_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, credit, target = desk_of(1)
    now_s = time.time()
    with caplog.at_level(logging.WARNING):
        for lease in range(3):
            monkeypatch.setattr(ticket_returns, "time", lambda at=now_s + 60 * lease: at)
            desk.issue(target)
            desk.issue(target)
            monkeypatch.setattr(ticket_returns, "time", lambda at=now_s + 60 * lease + 30: at)
            desk.collect()
    assert credit.deaf == 1
    assert len(caplog.records) == 1
    assert "UDP" in caplog.text


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        (
            mutated(TicketBook, "take_back", "back.token == self._token and", ""),
            test_tickets_of_other_attempts_and_noise_are_ignored,
        ),
        (
            mutated(Receiver, "finish", "self._ticket = None", "..."),
            test_tickets_of_records_and_claims_come_back,
        ),
        (
            mutated(Receiver, "pass_on", "ticket, self._ticket = self._ticket, None", "ticket = self._ticket"),
            test_ticket_passed_on_comes_back_from_the_last_stage,
        ),
        (
            mutated(TicketDesk, "wait", "self._waits_since_s = now_s - timeout_ms / 1000", "return True"),
            test_desk_waits_no_longer_than_tickets_usually_take,
        ),
    ],
)
def test_tickets_planted_defect_is_caught(
    monkeypatch: pytest.MonkeyPatch, defect: AbstractContextManager[Any], check: Callable[[], None]
) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    with defect, pytest.raises(AssertionError):
        check()


def test_desk_opens_where_the_host_name_is_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "192.0.2.7")
    desk = TicketDesk()
    desk.let_go()
