"""BatchQueue: contents, order and time of batches."""

import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling import batch_queue as batching
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement, StageWaits
from anabranch.operators.core.scheduling.batch_queue import (
    LONG_AGO_MS,
    BatchQueue,
    Departure,
    Handling,
    QueueChanges,
    begun_key,
)
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.split_request import SplitRequest
from anabranch.schemas.model import Batching
from anabranch.schemas.records import NO_DEADLINE_MS

PATIENT = {b"slow": 20.0, b"slower": 50.0}


def waiting(
    name: str,
    rows: int = 1,
    *,
    priority: int = 5,
    deadline_ms: int = NO_DEADLINE_MS,
    of: bytes = b"m",
    number: int = -1,
) -> Request:
    return Request(of, len(name), rows, priority, deadline_ms, number, id=name)


def new_queue(
    delays_ms: Mapping[bytes, float] | None = None,
    max_rows: int | None = 4,
    costs: Mapping[bytes, BatchCostModel] | None = None,
    order: SchedulingPolicy | None = None,
) -> BatchQueue:
    """A queue without delays but `delays_ms`, and without costs by default."""
    delays, known = delays_ms or {}, costs or {}

    def handling_of(signature: bytes) -> Handling:
        batching = Batching(max_rows=max_rows, max_delay_ms=delays.get(signature, 0.0))
        return Handling(batching, known.get(signature, BatchCostModel()))

    return BatchQueue(handling_of, order or SchedulingPolicy())


def costs(*measured: tuple[int, float]) -> BatchCostModel:
    """Costs of a model whose batches took exactly the measured times."""
    known = BatchCostModel([Measurement(*each) for each in measured])
    known.observe(*measured[0])
    return known


def test_queue_wait_counts_for_the_batch_that_was_sent() -> None:
    waits = StageWaits(0.0)
    sent, kept = Handling(Batching(), waits, target="stages"), Handling(Batching(), BatchCostModel())
    queue = BatchQueue(lambda signature: sent if signature == b"sent" else kept, SchedulingPolicy())
    for _ in range(8):
        for signature, waited_ms in (b"sent", 40.0), (b"kept", 9000.0):
            queue.add(waiting("a", of=signature), 0)
            assert queue.take(0).batch
            queue.note_blocked(waited_ms)
    assert waits.expect_ms(1) == pytest.approx(40.0)


def filled(*requests: Request, **options: Any) -> BatchQueue:
    """A queue that got these requests at 0 ms."""
    made = new_queue(**options)
    for request in requests:
        made.add(request, 0)
    return made


def shed(of: BatchQueue, max_backlog_ms: float, max_waiting_bytes: int) -> list[Request]:
    of._policy = replace(of._policy, max_backlog_ms=max_backlog_ms, max_waiting_bytes=max_waiting_bytes)
    return of.shed()


def names(requests: list[Request]) -> list[str]:
    return [request.id for request in requests]


def batch_of(departure: Departure) -> list[str]:
    """The batch of a departure without expired requests."""
    assert departure.expired == []
    return names(departure.batch)


def batches_of(of: BatchQueue, now_ms: float = 0, *, all_is_due: bool = False) -> list[list[str]]:
    """All batches that are due."""
    left = []
    while found := batch_of(of.take(now_ms, all_is_due=all_is_due)):
        left.append(found)
    return left


# ---- time of a batch --------------------------------------------------------------------------------------------


def test_queue_empty_gives_nothing_and_has_no_deadline() -> None:
    empty = new_queue()
    assert empty.take(0) == Departure([], [])
    assert empty.next_deadline() is None
    assert empty.size_bytes == 0


def test_queue_without_delay_gives_a_request_at_once() -> None:
    one = filled(waiting("a"))
    assert one.next_deadline() == 0
    assert batch_of(one.take(0)) == ["a"]
    assert one.next_deadline() is None


def test_queue_of_a_busy_task_fills_the_next_batch() -> None:
    #   ----a----bcd-----------> arrivals
    #       [ a ][ b c d ]       the task
    busy = filled(waiting("a"))
    assert batch_of(busy.take(0)) == ["a"]
    for now_ms, name in enumerate("bcd", start=1):
        busy.add(waiting(name), now_ms)
    assert batches_of(busy, 4) == [["b", "c", "d"]]


def test_queue_delayed_batch_is_due_after_its_delay() -> None:
    #   a  b              t = 2: the timer
    #   0  1  ----------> unit [a b]
    patient = new_queue({b"m": 2.0})
    patient.add(waiting("a"), 0)
    patient.add(waiting("b"), 1)
    assert patient.next_deadline() == 2
    assert batches_of(patient, 1.9) == []
    assert patient.next_deadline() == 2
    assert batches_of(patient, 2) == [["a", "b"]]
    assert patient.next_deadline() is None


def test_queue_delay_counts_from_the_oldest_request() -> None:
    patient = new_queue({b"m": 2.0})
    patient.add(waiting("old"), 0)
    patient.add(waiting("urgent", priority=1), 1)
    assert batches_of(patient, 1.9) == []
    assert batches_of(patient, 2) == [["urgent", "old"]]


def test_queue_delayed_batch_full_by_rows_is_due() -> None:
    #   a a  b b  c
    #   0    1    1 ----> unit [a b] at once, unit [c] at 3
    patient = new_queue({b"m": 2.0})
    patient.add(waiting("a", 2), 0)
    assert batches_of(patient) == []
    patient.add(waiting("b", 2), 1)
    patient.add(waiting("c"), 1)
    assert patient.next_deadline() == 0
    assert batches_of(patient, 1) == [["a", "b"]]
    assert patient.next_deadline() == 3
    assert batches_of(patient, 3) == [["c"]]


def test_queue_delayed_batch_full_by_bytes_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 10)
    patient = filled(waiting("aaaa"), waiting("bbbb"), delays_ms={b"m": 2.0})
    assert batches_of(patient) == []
    patient.add(waiting("cccc"), 0)
    assert batches_of(patient) == [["aaaa", "bbbb"]]


def test_queue_delay_of_a_model_does_not_delay_others() -> None:
    mixed = filled(waiting("a", priority=1, of=b"slow"), waiting("b"), waiting("c", of=b"slower"), delays_ms=PATIENT)
    assert batches_of(mixed) == [["b"]]
    assert mixed.next_deadline() == 20
    assert batches_of(mixed, 20) == [["a"]]
    assert mixed.next_deadline() == 50
    assert batches_of(mixed, 50) == [["c"]]


def test_queue_at_end_of_input_ignores_delays() -> None:
    mixed = filled(waiting("a", of=b"slow"), waiting("b"), waiting("c", of=b"slower"), delays_ms=PATIENT)
    assert batches_of(mixed, all_is_due=True) == [["a"], ["b"], ["c"]]
    assert mixed.next_deadline() is None


# ---- contents of a batch -----------------------------------------------------------------------------------------


def test_queue_batch_takes_rows_in_order_up_to_the_limit() -> None:
    assert batches_of(filled(waiting("a", 2), waiting("b", 2), waiting("c"))) == [["a", "b"], ["c"]]
    assert batches_of(filled(waiting("a", 3), waiting("b", 2), waiting("c"))) == [["a"], ["b", "c"]]


def test_queue_request_over_max_rows_is_a_batch_alone() -> None:
    assert batches_of(filled(waiting("a"), waiting("b", 9), waiting("c"))) == [["a"], ["b"], ["c"]]


def test_queue_batch_takes_bytes_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 10)
    several = filled(*[waiting(name) for name in ("aaaa", "bbbb", "cccc", "d", "e" * 50)], max_rows=100)
    assert batches_of(several) == [["aaaa", "bbbb"], ["cccc", "d"], ["e" * 50]]


def test_queue_without_limit_takes_quick_rows_of_64_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "DEFAULT_ROWS", 3)
    quick = {b"m": costs((1, 0.01), (512, 0.1))}
    options: dict[str, Any] = {"max_rows": None, "costs": quick}
    made = filled(waiting("a", 200), waiting("b", 300), waiting("c", 20), waiting("d"), waiting("e"), **options)
    assert batches_of(made) == [["a", "b"], ["c", "d", "e"]]
    made = filled(*[waiting(f"{n}", priority=n) for n in range(7)], **options)
    assert names(made.take_last(lambda _: True)) == ["4", "5", "6"]
    assert batches_of(made) == [["0", "1", "2"], ["3"]]
    patient = filled(waiting("a"), waiting("b"), delays_ms={b"m": 20.0}, **options)
    assert batches_of(patient) == []
    patient.add(waiting("c"), 0)
    assert batches_of(patient) == [["a", "b", "c"]]


def test_queue_counts_queued_bytes() -> None:
    several = filled(waiting("aaa", 4), waiting("bb", priority=9, deadline_ms=5), waiting("c", of=b"other"))
    assert several.size_bytes == 6
    assert batch_of(several.take(0)) == ["aaa"]
    assert several.size_bytes == 3
    assert names(several.take(5).expired) == ["bb"]
    assert several.size_bytes == 0


# ---- order of requests -----------------------------------------------------------------------------------------------


def test_queue_orders_by_priority_deadline_and_arrival() -> None:
    several = filled(
        waiting("late"),
        waiting("later"),
        waiting("in time", deadline_ms=90),
        waiting("soon", deadline_ms=50),
        waiting("urgent", priority=1),
        max_rows=2,
    )
    assert batches_of(several) == [["urgent", "soon"], ["in time", "late"], ["later"]]


def test_queue_low_priority_does_not_starve() -> None:
    order = SchedulingPolicy(priority_step_ms=100.0)
    several = new_queue(order=order)
    several.add(waiting("patient", 4, priority=3), 0)
    for now_ms in (50, 150, 250):
        several.add(waiting(f"{now_ms}", 4, priority=1), now_ms)
    assert batches_of(several, 300) == [["50"], ["150"], ["patient"], ["250"]]


def test_queue_far_deadline_counts_like_none() -> None:
    several = new_queue(order=SchedulingPolicy(no_deadline_ms=100.0))
    several.add(waiting("far", 4, deadline_ms=10**6), 0)
    several.add(waiting("none", 4), 1)
    several.add(waiting("near", 4, deadline_ms=90), 2)
    assert batches_of(several, 3) == [["near"], ["far"], ["none"]]


def test_queue_signatures_never_share_a_batch() -> None:
    #   x: a(5) c(1)        y: b(2) d(9)        z: e(1)
    #   [c a] of x, for c is first of all; [e] of z came after c; [b d] of y
    several = filled(
        waiting("a", priority=5, of=b"x"),
        waiting("b", priority=2, of=b"y"),
        waiting("c", priority=1, of=b"x"),
        waiting("d", priority=9, of=b"y"),
        waiting("e", priority=1, of=b"z"),
    )
    assert batches_of(several) == [["c", "a"], ["e"], ["b", "d"]]


def test_queue_more_urgent_signature_comes_between_batches() -> None:
    several = filled(
        waiting("a", 4, priority=1, of=b"x"),
        waiting("b", priority=5, of=b"x"),
        waiting("c", priority=3, of=b"y"),
        max_rows=4,
    )
    assert batches_of(several) == [["a"], ["c"], ["b"]]


def test_queue_newcomer_overtakes_less_urgent_requests() -> None:
    several = filled(waiting("a", of=b"x"), waiting("b", of=b"y"))
    assert batch_of(several.take(0)) == ["a"]
    several.add(waiting("c", priority=1, of=b"x"), 1)
    assert batches_of(several, 1) == [["c"], ["b"]]


def test_queue_urgent_newcomer_moves_its_group_once() -> None:
    several = filled(waiting("a", of=b"x"), waiting("b", priority=3, of=b"y"))
    several.add(waiting("c", priority=2, of=b"x"), 0)
    several.add(waiting("d", priority=1, of=b"x"), 0)
    assert batches_of(several) == [["d", "c", "a"], ["b"]]
    assert several.next_deadline() is None


def test_queue_refilled_group_is_ordered_by_its_new_requests() -> None:
    several = filled(waiting("a", priority=1, of=b"x"), waiting("b", priority=3, of=b"y"))
    assert batch_of(several.take(0)) == ["a"]
    several.add(waiting("c", priority=5, of=b"x"), 1)
    assert batches_of(several, 1) == [["b"], ["c"]]
    several.add(waiting("d", priority=2, deadline_ms=5, of=b"x"), 2)
    assert names(several.take(5).expired) == ["d"]
    several.add(waiting("e", priority=9, of=b"x"), 6)
    several.add(waiting("f", priority=8, of=b"y"), 6)
    assert batches_of(several, 6) == [["f"], ["e"]]


# ---- deadlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now_ms", [50, 50.5, 1000])
def test_queue_expired_request_leaves_and_is_not_run(now_ms: float) -> None:
    several = filled(waiting("a", deadline_ms=50), waiting("b"))
    departure = several.take(now_ms)
    assert (names(departure.expired), names(departure.batch)) == (["a"], ["b"])
    several.add(waiting("late", deadline_ms=50), now_ms)
    assert several.take(now_ms).batch == []
    assert several.next_deadline() is None


def test_queue_expired_request_leaves_before_urgent_ones() -> None:
    several = filled(
        waiting("urgent", priority=1, of=b"x"),
        waiting("b", deadline_ms=7, of=b"y"),
        waiting("c", deadline_ms=5, of=b"z"),
        waiting("in time", deadline_ms=8, of=b"y"),
    )
    departure = several.take(7)
    assert (names(departure.expired), names(departure.batch)) == (["c", "b"], ["urgent"])
    assert batches_of(several, 7) == [["in time"]]


def test_queue_expiry_keeps_the_order_of_the_others() -> None:
    several = filled(
        waiting("a", priority=1, deadline_ms=5, of=b"x"), waiting("b", priority=9, of=b"x"), waiting("c", of=b"y")
    )
    departure = several.take(5)
    assert (names(departure.expired), names(departure.batch)) == (["a"], ["c"])
    assert batches_of(several, 5) == [["b"]]


def test_queue_deadline_before_the_delay_wakes_the_task() -> None:
    #   a (until 3)  b         delay 20 ms
    #   0            0  -----> 3: a is late; 20: unit [b]
    patient = filled(waiting("a", deadline_ms=3), waiting("b"), delays_ms={b"m": 20.0})
    assert patient.next_deadline() == 3
    departure = patient.take(3)
    assert (names(departure.expired), departure.batch) == (["a"], [])
    assert patient.next_deadline() == 20
    assert batches_of(patient, 20) == [["b"]]


def test_queue_deadline_of_a_gone_request_is_ignored() -> None:
    patient = filled(waiting("a", 4, priority=1, deadline_ms=3), waiting("b", deadline_ms=9), delays_ms={b"m": 20.0})
    assert batches_of(patient) == [["a"]]
    assert patient.next_deadline() == 9


def test_queue_full_group_with_expiry_is_delayed_again() -> None:
    patient = filled(waiting("a", 2, deadline_ms=5), waiting("b", 2), delays_ms={b"m": 20.0})
    departure = patient.take(5)
    assert (names(departure.expired), departure.batch) == (["a"], [])
    assert patient.next_deadline() == 20


# ---- costs --------------------------------------------------------------------------------------------------------


def test_queue_batch_has_the_rows_that_cost_least() -> None:
    best = {b"m": costs((1, 1.0), (2, 1.6), (4, 6.0))}
    several = new_queue(costs=best)
    for name in "abcde":
        several.add(waiting(name), 0)
    assert batches_of(several) == [["a", "b"], ["c", "d"], ["e"]]


def test_queue_request_without_time_for_its_run_expires() -> None:
    slow = {b"m": costs((1, 10.0), (4, 30.0))}
    several = new_queue(costs=slow)
    several.add(waiting("hopeless", deadline_ms=109), 100)
    several.add(waiting("just", deadline_ms=111), 100)
    several.add(waiting("large", 4, deadline_ms=120), 100)
    departure = several.take(100)
    assert (names(departure.expired), names(departure.batch)) == (["large", "hopeless"], ["just"])


def test_queue_latest_start_wakes_the_task() -> None:
    patient = new_queue({b"m": 50.0}, costs={b"m": costs((1, 10.0))})
    patient.add(waiting("a", deadline_ms=40), 0)
    assert patient.next_deadline() == 30
    assert names(patient.take(30).expired) == ["a"]


def test_queue_backlog_is_the_predicted_work() -> None:
    several = new_queue(costs={b"m": costs((1, 10.0), (4, 20.0)), b"n": costs((1, 1.0))})
    several.add(waiting("a"), 0)
    several.add(waiting("b", 3, priority=1), 0)
    several.add(waiting("c", of=b"n"), 0)
    several.add(waiting("d", of=b"unknown"), 0)
    assert several.backlog_ms == pytest.approx(4 * 5.0 + 1.0)
    assert batch_of(several.take(0)) == ["b", "a"]
    assert several.backlog_ms == pytest.approx(1.0)
    assert batches_of(several) == [["c"], ["d"]]
    assert several.backlog_ms == 0


def test_queue_backlog_follows_the_price_of_a_measured_model() -> None:
    """A walk through all waiting requests at each price took 6 % of a task under a burst."""
    measured = costs((1, 10.0), (4, 20.0))
    several = new_queue(costs={b"m": measured}, max_rows=4)
    requests = [waiting("a"), waiting("b", priority=1), waiting("large", 8), waiting("c"), waiting("d")]
    for number, request in enumerate(requests):
        several.add(request, number / 1000)
    work = [request.cost for request in requests]
    assert several.backlog_ms == pytest.approx(12 * 5.0)
    assert batch_of(several.take(1)) == ["b", "a"]
    assert several.backlog_ms == pytest.approx(10 * 5.0)
    for _ in range(500):
        measured.observe(1, 30.0)
    assert several.follow_costs()
    assert [request.cost for request in requests] == work
    # The ratio moved a little after the last price.
    assert several.backlog_ms == pytest.approx(3 * 10 * 5.0, rel=0.1)
    assert names(shed(several, 100.0, 10**6)) == ["d", "c"]
    assert several.backlog_ms == pytest.approx(3 * 8 * 5.0, rel=0.1)
    assert several.take_last(lambda batch: batch[0].cost_ms < 100.0) == []
    assert names(several.take_last(lambda batch: batch[0].cost_ms > 100.0)) == ["large"]
    assert several.backlog_ms == 0


def test_queue_over_backlog_sheds_the_least_urgent() -> None:
    several = new_queue(costs={b"m": costs((1, 1.0))}, max_rows=1)
    for number in range(200):
        several.add(waiting(f"{number}", priority=1 + number % 2, of=b"m"), number / 1000)
    assert shed(several, 200.0, 10**6) == []
    gone = shed(several, 150.0, 10**6)
    assert names(gone) == [f"{number}" for number in range(199, 0, -2)][:52]  # down to 148.5 ms
    assert several.backlog_ms == pytest.approx(148.0)
    assert shed(several, 150.0, 10**6) == []
    assert sorted(int(name) for [name] in batches_of(several, 1)) == sorted(
        {*range(200)} - {int(each.id) for each in gone}
    )


def test_queue_over_bytes_sheds_without_known_costs() -> None:
    several = filled(*[waiting("x" * 10, priority=priority) for priority in (1, 2, 3, 4)])
    assert [request.priority for request in shed(several, 0.0, 35)] == [4]
    assert [request.priority for request in shed(several, 0.0, 0)] == [3, 2, 1]
    assert (several.next_deadline(), several.size_bytes) == (None, 0)


# ---- memory of gone requests -------------------------------------------------------------------------------------


def held(of: BatchQueue) -> int:
    """Numbers of requests and groups in the heaps, stale ones included."""
    return len(of._due) + len(of._deadlines)


def test_queue_gone_requests_are_freed_behind_an_early_one() -> None:
    busy = filled(waiting("starving", priority=9, deadline_ms=10**6))
    for now_ms in range(1, 10_000):
        busy.add(waiting("a", 4, priority=1, deadline_ms=2 * 10**6, of=b"x"), now_ms)
        assert batch_of(busy.take(now_ms)) == ["a"]
    assert held(busy) < 200


def test_queue_gone_requests_with_late_deadlines_are_freed() -> None:
    of = filled(*[waiting(f"{number}", 4, deadline_ms=10**6, of=b"x") for number in range(3)])
    for number in range(100):
        assert len(batch_of(of.take(number))) == 1
        assert len(of._deadlines) <= 2 * 2 + 9
        of.add(waiting("a", 4, deadline_ms=10**6, of=b"x"), number)
    for _ in range(3):
        of.take(100)
    assert of._deadlines == []


@pytest.mark.slow
@pytest.mark.parametrize("starving", [b"y", b"slow"])
def test_queue_group_of_expiring_requests_leaves_no_entries(starving: bytes) -> None:
    busy = filled(waiting("starving", priority=9, of=starving), delays_ms=PATIENT)
    for now_ms in range(100, 10_000):
        busy.add(waiting("a", 4, priority=1, of=b"x"), now_ms)
        busy.add(waiting("b", priority=9 - now_ms % 7, deadline_ms=now_ms + 1, of=starving), now_ms)
        busy.take(now_ms)
    assert held(busy) < 200


def test_queue_next_deadline_is_that_of_queued_requests() -> None:
    here = filled(
        waiting("a", of=b"x"),
        waiting("b", priority=1, of=b"x"),
        waiting("gone", 4, priority=1, deadline_ms=3, of=b"slow"),
        waiting("c", priority=3, of=b"slow"),
        delays_ms=PATIENT,
    )
    assert batch_of(here.take(0)) == ["gone"]
    assert batch_of(here.take(0)) == ["b", "a"]
    assert here.next_deadline() == 20


def test_queue_with_many_expiries_keeps_its_order() -> None:
    line = filled(
        *[waiting(str(n), priority=1 + n % 3, deadline_ms=1 + n if n % 2 else NO_DEADLINE_MS) for n in range(60)]
    )
    expired: list[str] = []
    left: list[str] = []
    for now_ms in range(0, 60, 7):
        departure = line.take(now_ms)
        expired += names(departure.expired)
        left += names(departure.batch)
    left += [name for found in batches_of(line, 63) for name in found]
    assert sorted(map(int, expired + left)) == list(range(60))
    assert [int(name) for name in left if int(name) % 2 == 0] == sorted(range(0, 60, 2), key=lambda n: (n % 3, n))
    assert line.size_bytes == 0


# ---- restored requests ---------------------------------------------------------------------------------------------


def restore(again: BatchQueue, *requests: Request) -> None:
    """Queues stored requests."""
    for request in requests:
        again.add(request, LONG_AGO_MS)


def test_queue_restored_request_ignores_the_delay() -> None:
    again = new_queue({b"m": 20.0})
    restore(again, waiting("a", number=3), waiting("b", number=4))
    assert again.next_deadline() == 0
    assert batches_of(again, 100) == [["a", "b"]]


def test_queue_restored_request_keeps_its_number() -> None:
    again, last = new_queue(), waiting("last")
    restore(again, waiting("b", number=7), waiting("a", number=4), waiting("c", priority=1, number=9))
    again.add(last, 101)
    assert last.number == 10
    assert batches_of(again, 101) == [["c", "a", "b", "last"]]


def test_queue_restored_request_is_due_beside_an_urgent_one() -> None:
    again = new_queue({b"m": 20.0})
    restore(again, waiting("a", number=0))
    again.add(waiting("b", priority=1), 100)
    assert batches_of(again, 100) == [["a", "b"]]  # first, because it is restored


def test_queue_restored_request_is_due_after_an_expiry() -> None:
    again = new_queue({b"m": 20.0})
    restore(again, waiting("a", number=0), waiting("b", number=1, priority=1, deadline_ms=90))
    departure = again.take(100)
    assert (names(departure.batch), names(departure.expired)) == (["a"], ["b"])


# ---- batches for other tasks ---------------------------------------------------------------------------------------


def test_queue_take_last_gives_the_least_urgent_batch() -> None:
    made = filled(*[waiting(f"{n}", priority=1 + n % 3) for n in range(9)], max_rows=2)
    assert names(made.take_last(lambda _: True)) == ["5", "8"]
    assert batches_of(made) == [["0", "3"], ["6", "1"], ["4", "7"], ["2"]]


def test_queue_take_last_skips_unwanted_batches() -> None:
    made = filled(waiting("light", of=b"l"), waiting("heavy", of=b"h"), waiting("light too", of=b"l"))
    assert names(made.take_last(lambda unit: unit[0].signature == b"h")) == ["heavy"]
    assert made.take_last(lambda unit: unit[0].signature == b"h") == []
    assert batches_of(made) == [["light", "light too"]]


# ---- any sequence -------------------------------------------------------------------------------------------------

MAX_ROWS, MAX_BYTES = 4, 12
DELAYS_MS = {b"m": 0.0, b"n": 0.0, b"slow": 3.0, b"slower": 8.0}
ORDER = SchedulingPolicy(priority_step_ms=10.0, no_deadline_ms=5.0)


class QueueMachine(RuleBasedStateMachine):
    """A queue beside a list of its expected contents."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.queue = self.new_queue()
        self.inside: list[Request] = []
        self.come = 0

    def new_queue(self) -> BatchQueue:
        return new_queue(DELAYS_MS, MAX_ROWS, {b"n": costs((1, 1.0), (4, 2.0), (8, 8.0))}, ORDER)

    @rule(
        rows=st.integers(1, 6),
        size=st.integers(1, 15),
        priority=st.integers(1, 3),
        timeout_ms=st.sampled_from([None, None, 0, 2, 9]),
        of=st.sampled_from(sorted(DELAYS_MS)),
    )
    def add(self, rows: int, size: int, priority: int, timeout_ms: int | None, of: bytes) -> None:
        deadline_ms = NO_DEADLINE_MS if timeout_ms is None else self.now_ms + timeout_ms + 1
        request = waiting("x" * size, rows, priority=priority, deadline_ms=deadline_ms, of=of)
        self.queue.add(request, self.now_ms)
        assert request.number == self.come
        self.come += 1
        self.inside.append(request)

    @rule(step_ms=st.integers(1, 4))
    def time_passes(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @rule(all_is_due=st.sampled_from([False, False, False, True]))
    def take(self, all_is_due: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "MAX_BATCH_BYTES", MAX_BYTES)
            departure = self.queue.take(self.now_ms, all_is_due=all_is_due)
            wakes_at_ms = self.queue.next_deadline()
        late = [request for request in self.inside if self.is_late(request)]
        assert sorted(request.number for request in departure.expired) == [request.number for request in late]
        self.inside = [request for request in self.inside if request not in late]
        if departure.batch:
            self.check_batch(departure.batch)
            self.inside = [request for request in self.inside if request not in departure.batch]
        else:
            assert not any(self.is_due(request.signature) for request in self.inside)
            assert not self.inside or not all_is_due
            # An idle task sleeps until the next batch is due.
            assert wakes_at_ms == min((self.wakes_at_ms(request) for request in self.inside), default=None)

    def check_batch(self, taken: list[Request]) -> None:
        [signature] = {request.signature for request in taken}
        group = sorted((r for r in self.inside if r.signature == signature), key=urgency)
        assert taken == group[: len(taken)]
        assert len(taken) == 1 or rows_of(taken) <= MAX_ROWS
        assert len(taken) == 1 or bytes_of(taken) <= MAX_BYTES
        longer = group[: len(taken) + 1]
        assert longer == taken or rows_of(longer) > MAX_ROWS or bytes_of(longer) > MAX_BYTES
        at_once = [r for r in self.inside if self.is_due(r.signature)]
        assert all(urgency(taken[0]) <= urgency(request) for request in at_once)

    @rule(is_wanted=st.booleans())
    def take_last(self, is_wanted: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "MAX_BATCH_BYTES", MAX_BYTES)
            taken = self.queue.take_last(lambda unit: is_wanted and DELAYS_MS[unit[0].signature] == 0)
        due = sorted((r for r in self.inside if DELAYS_MS[r.signature] == 0), key=urgency)
        assert bool(taken) == (is_wanted and bool(due))
        if taken:
            group = [request for request in due if request.signature == due[-1].signature]
            assert taken == group[-len(taken) :]
            assert len(taken) == 1 or (rows_of(taken) <= MAX_ROWS and bytes_of(taken) <= MAX_BYTES)
            longer = group[-len(taken) - 1 :]
            assert longer == taken or rows_of(longer) > MAX_ROWS or bytes_of(longer) > MAX_BYTES
            self.inside = [request for request in self.inside if request not in taken]

    @rule(max_size_bytes=st.integers(0, 40))
    def shed(self, max_size_bytes: int) -> None:
        gone = shed(self.queue, 10**6, max_size_bytes)
        assert bool(gone) == (bytes_of(self.inside) > max_size_bytes)
        ordered = sorted(self.inside, key=urgency, reverse=True)
        assert gone == ordered[: len(gone)]
        self.inside = [request for request in self.inside if request not in gone]
        assert bytes_of(self.inside) <= 0.99 * max_size_bytes or not gone

    @precondition(lambda self: self.inside)
    @rule()
    def fail_and_restore(self) -> None:
        self.queue = self.new_queue()
        self.inside = [replace(r, arrived_ms=0.0) for r in self.inside]
        restore(self.queue, *self.inside)
        self.come = self.inside[-1].number + 1
        assert self.queue.next_deadline() == 0

    @invariant()
    def what_waits_is_known(self) -> None:
        assert (self.queue.next_deadline() is None) == (not self.inside)
        assert self.queue.size_bytes == bytes_of(self.inside)

    def teardown(self) -> None:
        while self.inside:
            self.take(all_is_due=True)

    def is_late(self, request: Request) -> bool:
        return request.deadline_ms != NO_DEADLINE_MS and latest_ms(request) <= self.now_ms

    def is_due(self, signature: bytes) -> bool:
        group = [request for request in self.inside if request.signature == signature]
        return rows_of(group) >= MAX_ROWS or bytes_of(group) >= MAX_BYTES or self.patience_ends_ms(group) <= self.now_ms

    def patience_ends_ms(self, group: list[Request]) -> float:
        return min(request.arrived_ms + DELAYS_MS[request.signature] for request in group)

    def wakes_at_ms(self, request: Request) -> float:
        return min(request.arrived_ms + DELAYS_MS[request.signature], latest_ms(request))


def latest_ms(request: Request) -> float:
    """Latest start: `n` takes 1 ms for a row and 2 for 4."""
    if request.deadline_ms == NO_DEADLINE_MS:
        return float("inf")
    takes_ms = {1: 1.0, 2: 4 / 3, 3: 5 / 3, 4: 2.0, 5: 3.5, 6: 5.0}[request.rows] if request.signature == b"n" else 0.0
    return request.deadline_ms - takes_ms


def urgency(request: Request) -> tuple[float, int]:
    return min(request.deadline_ms or float("inf"), request.arrived_ms + 5.0) + 10.0 * request.priority, request.number


def rows_of(requests: list[Request]) -> int:
    return sum(request.rows for request in requests)


def bytes_of(requests: list[Request]) -> int:
    return sum(request.size_bytes for request in requests)


QueueMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestQueueModel = pytest.mark.slow(QueueMachine.TestCase)


# ---- readers in other tasks ----------------------------------------------------------------------------------------


class Readers:
    """A gate that a test opens and closes."""

    has_room = True


def away(readers: Readers, policy: SchedulingPolicy | None = None) -> BatchQueue:
    """A queue whose requests of signature `away` go to readers, and cost 2 ms per row like the others."""

    def handling_of(signature: bytes) -> Handling:
        is_away = signature == b"away"
        return Handling(Batching(max_rows=4), costs((1, 2.0), (4, 8.0)), *(("stage", readers) if is_away else ()))

    return BatchQueue(handling_of, policy or SchedulingPolicy())


def split_of(readers: Readers, parts: int, log: list[int]) -> SplitRequest:
    """A split request that logs which record left."""

    def note(part: int) -> Any:
        log.append(part)
        return part

    records = ((readers, partial(note, part)) for part in range(parts))
    return SplitRequest("exchange", parts, 1, readers, lambda _: note(-1), lambda _: iter(records))


def left(queue: BatchQueue, now_ms: float = 0.0) -> list[str]:
    """Ids of the batches that leave, and of split requests for each record."""
    names = []
    while batch := queue.take(now_ms).batch:
        names.append("".join(request.id for request in batch))
        if (split := batch[0].split) is not None:
            split.advance(now_ms)
            queue.settle_split(batch[0])
    return names


def test_queue_full_readers_hold_up_no_other_signature() -> None:
    readers = Readers()
    queue = away(readers)
    readers.has_room = False
    queue.add(waiting("a", of=b"away", priority=1), 0.0)
    queue.add(waiting("b"), 0.0)
    assert left(queue, 5.0) == ["b"]
    assert (queue.is_blocked, queue.next_deadline()) == (True, 7.0)
    queue.add(waiting("c", of=b"away", priority=0), 5.0)
    assert left(queue, 7.0) == []
    readers.has_room = True
    assert left(queue, 8.0) == ["c", "a"]
    assert (queue.is_blocked, queue.next_deadline()) == (False, None)


def test_queue_looks_for_room_as_often_as_it_is_told() -> None:
    readers = Readers()
    queue = BatchQueue(
        lambda _: Handling(Batching(), StageWaits(0.0), "stages", readers), SchedulingPolicy(), look_again_ms=10.0
    )
    readers.has_room = False
    queue.add(waiting("a"), 0.0)
    assert queue.take(5.0).batch == []
    assert queue.next_deadline() == 15.0


def test_queue_at_the_end_of_the_input_ignores_full_readers() -> None:
    readers = Readers()
    queue = away(readers)
    readers.has_room = False
    queue.add(waiting("a", of=b"away"), 0.0)
    assert queue.take(0.0).batch == []
    assert [request.id for request in queue.take(0.0, all_is_due=True).batch] == ["a"]


def test_queue_lets_batches_pass_full_readers_in_one_call() -> None:
    readers = Readers()
    queue = away(readers)
    readers.has_room = False
    for name in "abc":
        queue.add(waiting(name, rows=4, of=b"away"), 0.0)
    assert (left(queue), queue.awaits_readers) == ([], True)
    queue.let_pass()
    assert [request.id for _ in range(2) for request in queue.take(0.0).batch] == ["a", "b"]
    queue.settle()
    assert (left(queue), queue.awaits_readers) == ([], True)


def test_queue_of_its_own_requests_awaits_no_readers() -> None:
    queue = away(Readers())
    queue.add(waiting("a"), 0.0)
    assert (queue.awaits_readers, left(queue)) == (False, ["a"])


def test_queue_wait_for_room_counts_like_a_full_exchange() -> None:
    waits, readers = {name: StageWaits(0.0) for name in (b"often", b"rare")}, Readers()
    queue = BatchQueue(lambda signature: Handling(Batching(), waits[signature], "stages", readers), SchedulingPolicy())
    queue.add(waiting("r", of=b"rare", priority=9), 0.0)
    for number in range(9):
        at_ms = 40.0 * number
        queue.add(waiting(f"{number}", of=b"often"), at_ms)
        readers.has_room = False
        assert queue.take(at_ms).batch == []
        readers.has_room = True
        assert [request.id for request in queue.take(at_ms + 40.0).batch] == [f"{number}"]
        queue.note_blocked(0.0)
    assert waits[b"often"].expect_ms(1) == pytest.approx(40.0)
    assert [request.id for request in queue.take(400.0).batch] == ["r"]
    queue.note_blocked(0.0)
    assert waits[b"rare"].expect_ms(1) == pytest.approx(40.0), "it waited for the others before"


def test_queue_split_request_leaves_by_priority() -> None:
    readers, log = Readers(), list[int]()
    queue = away(readers)
    queue.add(waiting("s", rows=3, priority=9), 0.0, split_of(readers, 3, log))
    queue.take(0.0).batch[0].split.advance(0.0)  # type: ignore[union-attr]
    queue.add(waiting("t", rows=2, priority=1), 1.0, split_of(readers, 2, []))
    queue.add(waiting("u", priority=5), 1.0)
    assert left(queue, 1.0) == ["t", "t", "u", "s", "s"]
    assert log == [-1, 0, 1, 2]


def test_queue_deadline_holds_for_blocked_requests() -> None:
    readers = Readers()
    queue = away(readers)
    readers.has_room = False
    queue.add(waiting("a", rows=2, deadline_ms=50), 0.0, split_of(readers, 2, []))
    queue.add(waiting("b", of=b"away", deadline_ms=50), 0.0)
    assert queue.take(10.0) == Departure([], [])
    assert [request.id for request in queue.take(50.0).expired] == ["a", "b"]
    assert queue.next_deadline() is None


def test_queue_split_request_that_has_begun_expires_silently() -> None:
    readers = Readers()
    queue = away(readers)
    queue.add(waiting("a", rows=2, deadline_ms=50), 0.0, split_of(readers, 2, []))
    queue.settle()
    [request] = queue.take(0.0).batch
    assert request.split is not None
    request.split.advance(0.0)
    queue.settle_split(request)
    assert [each.id for each in queue.settle().begun] == ["a"]
    assert queue.take(50.0) == Departure([], [])
    assert sorted(queue.settle().departed) == [begun_key(0), 0]


def test_queue_work_for_others_is_shed_by_their_own_limit() -> None:
    readers = Readers()
    queue = away(readers, SchedulingPolicy(overload="refuse", max_backlog_ms=19.0))
    for number in range(10):
        queue.add(waiting(f"s{number}", rows=4, priority=number), 0.0, split_of(readers, 4, []))
        queue.add(waiting(f"u{number}", of=b"away", priority=number), 0.0)
    queue.add(waiting("here", rows=4, priority=9), 0.0)
    assert queue.backlog_ms == 8.0
    assert sorted(request.id for request in queue.shed()) == [*(f"s{number}" for number in range(2, 10)), "u9"]
    assert queue.shed() == []


def test_queue_split_request_counts_in_bytes_until_it_left() -> None:
    readers = Readers()
    queue = away(readers, SchedulingPolicy(max_waiting_bytes=1))
    queue.add(waiting("ab", rows=2), 0.0, split_of(readers, 2, []))
    assert queue.is_full
    request = queue.take(0.0).batch[0]
    assert request.split is not None
    request.split.advance(0.0)
    queue.settle_split(request)
    assert queue.is_full
    assert left(queue) == ["ab"]
    assert not queue.is_full


@pytest.mark.parametrize(("row_ms", "is_cheap"), [(0.01, True), (0.1, False)])
def test_queue_is_cheap_if_storing_takes_longer(row_ms: float, *, is_cheap: bool) -> None:
    costs = BatchCostModel([Measurement(rows, rows * row_ms) for rows in (1, 4)])
    queue = new_queue(costs={b"m": costs})
    for number in range(500):
        queue.add(waiting(str(number)), 0.0)
    assert queue.backlog_ms == pytest.approx(500 * row_ms)
    assert queue.is_cheap == is_cheap


def test_queue_never_hands_over_work_for_other_readers() -> None:
    readers = Readers()
    queue = away(readers)
    queue.add(waiting("a", of=b"away"), 0.0)
    queue.add(waiting("s", rows=2), 0.0, split_of(readers, 2, []))
    queue.add(waiting("b", priority=1), 0.0)
    assert [request.id for request in queue.take_last(lambda _: True)] == ["b"]
    assert queue.take_last(lambda _: True) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sent", "expired", "expired after its first record", "shed"])
def test_queue_split_request_that_departed_is_freed(way: str) -> None:
    """A request is in no garbage collector's graph: a cycle with its records would stay for ever."""
    queue = away(Readers(), SchedulingPolicy(overload="refuse", max_backlog_ms=10.0 if way == "shed" else 1e9))
    before = live_splits()
    for number in range(20):
        request = waiting(f"{number}", rows=4, deadline_ms=50)
        queue.add(request, 0.0, of_its_own(request))
    if way == "sent":
        assert len(left(queue)) == 40
    elif way == "shed":
        assert len(queue.shed()) == 19
    else:
        if way != "expired":
            queue.take(0.0).batch[0].split.advance(0.0)  # type: ignore[union-attr]
        assert len(queue.take(50.0).expired) == (20 if way == "expired" else 19)
    queue.settle()
    del request
    assert live_splits() - before == (1 if way == "shed" else 0)


def of_its_own(request: Request) -> SplitRequest:
    """Records that refer to their request, as a router makes them."""

    def record() -> Any:
        return request.id

    return SplitRequest("exchange", 4, 2, None, lambda _: record(), lambda _: iter([(None, record), (None, record)]))


def live_splits() -> int:
    gc.collect()
    return sum(isinstance(each, SplitRequest) for each in gc.get_objects())


# ---- slow batches beside the task ----------------------------------------------------------------------------------


def slow_and_quick(lane: Readers, policy: SchedulingPolicy | None = None) -> BatchQueue:
    """A queue whose rows of signature `s` take 30 ms each, a lone one 40, others 1 ms; a batch has two rows at most."""
    known = {b"s": costs((1, 40.0), (2, 60.0))}
    quick = costs((1, 1.0), (2, 2.0))

    def handling_of(signature: bytes) -> Handling:
        return Handling(Batching(max_rows=2), known.get(signature, quick))

    return BatchQueue(handling_of, policy or SchedulingPolicy(), lane)


def added(queue: BatchQueue, *requests: Request, now_ms: float = 0.0) -> BatchQueue:
    for request in requests:
        queue.add(request, now_ms)
    return queue


def test_queue_slow_batch_holds_up_no_quick_one() -> None:
    lane = Readers()
    queue = added(slow_and_quick(lane), *[waiting(name, of=b"s", priority=1) for name in "abcd"], waiting("e"))
    departure = queue.take(0.0)
    assert (names(departure.batch), departure.is_slow) == (["a", "b"], True)
    departure = queue.take(0.0)
    assert (names(departure.batch), departure.is_slow) == (["e"], False)
    assert queue.take(1.0).batch == []
    assert names(queue.end_slow()) == ["a", "b"]
    assert names(queue.take(1.0).batch) == ["c", "d"]


def test_queue_batch_of_a_slow_model_that_is_quick_runs_at_once() -> None:
    lane = Readers()
    lane.has_room = False
    departure = added(slow_and_quick(lane), waiting("a", of=b"s")).take(0.0)
    assert (names(departure.batch), departure.is_slow) == (["a"], False)


def test_queue_lane_without_room_is_looked_at_again() -> None:
    lane = Readers()
    queue = added(slow_and_quick(lane), *[waiting(name, of=b"s") for name in "ab"])
    lane.has_room = False
    assert (queue.take(5.0).batch, queue.next_deadline(), queue.awaits_lane) == ([], 15.0, True)
    lane.has_room = True
    assert queue.take(15.0).is_slow


def test_queue_slow_batch_is_looked_for_at_its_end() -> None:
    queue = added(slow_and_quick(Readers()), *[waiting(name, of=b"s") for name in "abcd"])
    queue.take(100.0)
    assert queue.next_deadline() == 160.0
    queue.take(160.0)
    assert queue.next_deadline() == 161.0
    queue.take(740.0)
    assert queue.next_deadline() == 745.0


def test_queue_slow_batch_stays_in_state_until_it_ends() -> None:
    queue = added(slow_and_quick(Readers()), *[waiting(name, of=b"s") for name in "ab"])
    queue.take(0.0)
    assert names(queue.settle().arrived) == ["a", "b"]
    assert queue.settle() == QueueChanges([], [])
    assert (queue.size_bytes, queue.backlog_ms) == (2, 0.0)
    queue.end_slow()
    assert queue.settle().departed == [0, 1]
    assert (queue.size_bytes, queue.next_deadline()) == (0, None)


def test_queue_slow_batch_that_ends_before_it_is_stored_never_is() -> None:
    queue = added(slow_and_quick(Readers()), *[waiting(name, of=b"s") for name in "ab"])
    queue.take(0.0)
    queue.end_slow()
    assert queue.settle() == QueueChanges([], [])


def test_queue_at_end_of_input_has_no_slow_batches() -> None:
    lane = Readers()
    queue = added(slow_and_quick(lane), *[waiting(name, of=b"s") for name in "abcd"])
    lane.has_room = False
    assert queue.take(0.0).batch == []
    departure = queue.take(0.0, all_is_due=True)
    assert (names(departure.batch), departure.is_slow) == (["a", "b"], False)


def test_queue_slow_backlog_sheds_no_quick_requests() -> None:
    queue = slow_and_quick(Readers(), SchedulingPolicy(max_backlog_ms=100.0))
    added(queue, *[waiting(f"s{n}", of=b"s") for n in range(5)], *[waiting(f"q{n}", priority=9) for n in range(5)])
    assert queue.slow_backlog_ms() == 150.0
    assert names(queue.shed()) == ["s4", "s3"]
    added(queue, *[waiting(f"q{n}") for n in range(200)])
    assert all(name.startswith("q") for name in names(queue.shed()))


def test_queue_take_last_of_a_kind_gives_only_it() -> None:
    queue = added(slow_and_quick(Readers()), *[waiting(name, of=b"s") for name in "abcd"], waiting("q", priority=9))
    queue.take(0.0)
    queue.take(0.0)
    assert queue.take(0.0).batch == [], "the slow ones are blocked"
    queue.add(waiting("r", priority=9), 0.0)
    assert names(queue.take_last(lambda _: True, is_slow=True)) == ["c", "d"]
    assert queue.take_last(lambda _: True, is_slow=True) == []
    assert names(queue.take_last(lambda _: True, is_slow=False)) == ["r"]


def test_queue_requests_in_order_never_run_beside_the_task() -> None:
    lane = Readers()
    lane.has_room = False
    queue = added(slow_and_quick(lane), *[waiting(name, of=b"s") for name in "ab"])
    assert queue.take(0.0).batch == []
    ordered = waiting("c", of=b"s")
    ordered.holds_order = True
    queue.add(ordered, 0.0)
    assert queue.take(0.0) == Departure(queue_of(queue, "ab"), [], is_slow=False)


def queue_of(queue: BatchQueue, ids: str) -> list[Request]:
    """Requests that were added, by id."""
    return [request for request in queue._arrived if request.id in ids]


@pytest.mark.parametrize(
    "measured", [((1, 1.0), (64, 64.0)), ((1, 1.0), (64, 2.0))], ids=["linear", "cheaper together"]
)
@pytest.mark.parametrize("delay_ms", [0.0, 5.0])
def test_queue_alike_requests_at_once_equal_one_by_one(
    measured: tuple[tuple[int, float], ...], delay_ms: float
) -> None:
    def filled_by(add: Callable[[BatchQueue, list[Request]], None]) -> Any:
        queue = new_queue({b"m": delay_ms}, costs={b"m": costs(*measured)})
        queue.add(waiting("urgent", priority=1), 0)
        queue.add(waiting("idle", priority=9), 0)
        add(queue, [waiting(f"r{number}") for number in range(6)])
        found = queue.size_bytes, round(queue.backlog_ms, 6), queue.next_deadline()
        arrived = [(each.id, each.number, each.arrived_ms) for each in queue.settle().arrived]
        return found, arrived, batches_of(queue, 20)

    def one_by_one(queue: BatchQueue, requests: list[Request]) -> None:
        for request in requests:
            queue.add(request, 7)

    def at_once(queue: BatchQueue, requests: list[Request]) -> None:
        queue.add(requests[0], 7)
        queue.add_like(requests[0], requests[1:], 7)

    assert filled_by(at_once) == filled_by(one_by_one)
