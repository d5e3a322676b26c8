"""Lanes: which requests share a unit, when it leaves, and in which order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.core import batching
from operators.core.batching import Departure, Lane, Waiting
from schemas.model import Batching
from schemas.records import NO_DEADLINE_MS

BATCHING = Batching(max_rows=4, max_delay_ms=2.0)
BUSY_MS, IDLE_MS = 0.0, 5.0
IDLE_GAP_MS = 1.0


def waiting(name: str, rows: int = 1, *, rank: int = 5, deadline_ms: int = NO_DEADLINE_MS, of: bytes = b"m") -> Waiting:
    return Waiting(name.encode(), of, rows, rank, deadline_ms)


class Clerk:
    """A lane, and how its units look from outside."""

    def __init__(self, **changes: Any) -> None:
        self.batching = Batching(**({"max_rows": 4, "max_delay_ms": 2.0} | changes))
        self.lane = Lane(lambda signature: self.batching, IDLE_GAP_MS)

    def put(self, request: Waiting, now_ms: float, idle_ms: float = BUSY_MS) -> Departure:
        return self.lane.on_request(request, self.batching, now_ms, idle_ms)


def units(departure: Departure) -> list[list[str]]:
    return [[request.encoded.decode() for request in unit] for unit in departure.units]


# ---- when a unit leaves --------------------------------------------------------------------------------------------


def test_an_idle_task_waits_for_nobody() -> None:
    clerk = Clerk()
    departure = clerk.put(waiting("a"), 0, IDLE_MS)
    assert units(departure) == [["a"]]
    assert not departure.drained  # it never waited: state needs no change
    assert clerk.lane.next_deadline() is None


def test_a_request_that_meets_others_waits_with_them_though_the_task_was_idle() -> None:
    clerk = Clerk()
    assert clerk.put(waiting("a"), 0).kept
    assert clerk.put(waiting("b", of=b"other"), 1, IDLE_MS).kept


def test_a_unit_leaves_when_the_delay_of_its_first_request_is_over() -> None:
    #   a  b              t = 2: the timer
    #   0  1  ----------> unit [a b]
    clerk = Clerk()
    assert clerk.put(waiting("a"), 0).kept
    assert clerk.put(waiting("b"), 1).kept
    assert clerk.lane.next_deadline() == 2
    assert units(clerk.lane.on_timer(1.9)) == []
    assert not clerk.lane.on_timer(1.9).drained
    departure = clerk.lane.on_timer(2)
    assert (units(departure), departure.drained) == ([["a", "b"]], True)
    assert clerk.lane.next_deadline() is None


def test_a_unit_leaves_when_its_rows_are_full() -> None:
    clerk = Clerk()
    assert clerk.put(waiting("a", 2), 0).kept
    departure = clerk.put(waiting("b", 2), 0)
    assert (units(departure), departure.drained, departure.kept) == ([["a", "b"]], True, False)
    assert clerk.lane.snapshot() == []


def test_a_full_request_leaves_alone_and_without_a_delay_so_does_every_request() -> None:
    assert units(Clerk().put(waiting("a", 4), 0)) == [["a"]]
    assert units(Clerk(max_delay_ms=0).put(waiting("a"), 0)) == [["a"]]


def test_a_unit_leaves_when_its_bytes_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_UNIT_BYTES", 10)
    clerk = Clerk(max_rows=100)
    assert clerk.put(waiting("aaaa"), 0).kept
    assert clerk.put(waiting("bbbb"), 0).kept
    assert units(clerk.put(waiting("cccc"), 0)) == [["aaaa", "bbbb"], ["cccc"]]
    assert clerk.put(waiting("d"), 1).kept
    assert units(clerk.put(waiting("e" * 50), 1)) == [["d"], ["e" * 50]]


def test_signatures_never_share_a_unit_and_never_wait_for_each_other() -> None:
    slow, fast = Batching(max_rows=9, max_delay_ms=50), Batching(max_rows=9, max_delay_ms=2)
    lane = Lane({b"slow": slow, b"fast": fast}.__getitem__, IDLE_GAP_MS)
    lane.on_request(waiting("a", of=b"slow"), slow, 0, BUSY_MS)
    lane.on_request(waiting("b", of=b"fast"), fast, 1, BUSY_MS)
    assert lane.next_deadline() == 3
    assert units(lane.on_timer(3)) == [["b"]]
    assert lane.next_deadline() == 50
    assert units(lane.on_timer(50)) == [["a"]]


# ---- in which order ------------------------------------------------------------------------------------------------


def test_priority_comes_first_then_the_deadline_then_arrival() -> None:
    clerk = Clerk(max_rows=2)
    lane = Lane(lambda signature: clerk.batching, IDLE_GAP_MS)
    lane.restore(
        [
            waiting("late"),
            waiting("later"),
            waiting("in time", deadline_ms=90),
            waiting("soon", deadline_ms=50),
            waiting("urgent", rank=1),
        ],
        0,
    )
    assert units(lane.on_timer(0)) == [["urgent", "soon"], ["in time", "late"], ["later"]]


def test_the_unit_with_the_most_urgent_request_leaves_first() -> None:
    clerk = Clerk()
    clerk.put(waiting("a", of=b"x"), 0)
    clerk.put(waiting("b", rank=1, of=b"y"), 0)
    assert units(clerk.lane.flush(0)) == [["b"], ["a"]]


@pytest.mark.parametrize("now_ms", [50, 50.5, 1000])
def test_what_has_expired_leaves_to_be_answered_and_never_to_be_run(now_ms: float) -> None:
    clerk = Clerk(max_delay_ms=50)
    clerk.put(waiting("a", deadline_ms=50), 0)
    clerk.put(waiting("b"), 0)
    departure = clerk.lane.on_timer(now_ms)
    assert ([request.encoded for request in departure.expired], units(departure)) == ([b"a"], [["b"]])
    late = clerk.put(waiting("c", deadline_ms=50), now_ms, IDLE_MS)
    assert ([request.encoded for request in late.expired], units(late), late.kept) == ([b"c"], [], False)


# ---- state ---------------------------------------------------------------------------------------------------------


def test_what_is_restored_is_due_at_once_and_in_its_old_order() -> None:
    clerk = Clerk()
    for name in "abc":
        clerk.put(waiting(name), 0)
    assert clerk.lane.snapshot() == [b"a", b"b", b"c"]
    lane = Lane(lambda signature: clerk.batching, IDLE_GAP_MS)
    lane.restore([waiting(encoded.decode()) for encoded in clerk.lane.snapshot()], 100)
    assert lane.next_deadline() == 100
    assert units(lane.on_timer(100)) == [["a", "b", "c"]]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.sampled_from([1, 5]),
            st.sampled_from([NO_DEADLINE_MS, 3, 8]),
            st.sampled_from([b"m", b"n"]),
            st.sampled_from([BUSY_MS, IDLE_MS]),
            st.sampled_from(["", "timer", "restore"]),
        ),
        max_size=20,
    )
)
def test_everything_leaves_exactly_once_in_time_and_in_bounds(steps: list[Any]) -> None:
    clerk = Clerk()
    left: list[Waiting] = []
    arrived: dict[bytes, tuple[Waiting, float]] = {}
    inside: list[Waiting] = []

    def take(departure: Departure, now_ms: float) -> None:
        for unit in departure.units:
            assert len({request.signature for request in unit}) == 1
            assert sum(request.rows for request in unit) <= 4 or len(unit) == 1
            assert [(r.rank, r.deadline_ms or 99) for r in unit] == sorted((r.rank, r.deadline_ms or 99) for r in unit)
            assert all(request.deadline_ms == NO_DEADLINE_MS or request.deadline_ms > now_ms for request in unit)
        assert all(0 < request.deadline_ms <= now_ms for request in departure.expired)
        gone = [request for unit in departure.units for request in unit] + departure.expired
        assert departure.drained == any(request in inside for request in gone)
        left.extend(gone)
        inside[:] = [request for request in inside if request not in gone]

    for now_ms, (rows, rank, deadline_ms, signature, idle_ms, then) in enumerate(steps):
        request = waiting(f"{now_ms}", rows, rank=rank, deadline_ms=deadline_ms, of=signature)
        arrived[request.encoded] = (request, now_ms)
        departure = clerk.put(request, now_ms, idle_ms)
        take(departure, now_ms)
        if departure.kept:
            inside.append(request)
        if then == "restore":
            kept = [arrived[encoded][0] for encoded in clerk.lane.snapshot()]
            clerk = Clerk()
            clerk.lane.restore(kept, now_ms)
        if then:
            take(clerk.lane.on_timer(now_ms), now_ms)
            assert all(arrived[encoded][1] + 2 > now_ms for encoded in clerk.lane.snapshot())
        assert sorted(clerk.lane.snapshot()) == sorted(waits.encoded for waits in inside)
        assert (clerk.lane.next_deadline() is None) == (not inside)
    take(clerk.lane.flush(len(steps)), len(steps))
    assert not inside
    assert sorted(request.encoded for request in left) == sorted(arrived)
