"""Sharding: the big is split, the small share a batch, and what cannot be judged goes on to be answered."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from operators.core import sharding as sharding_module
from operators.core.admission import Admission
from operators.core.sharding import Changes, Sharding
from schemas.model import Batching, Catalog
from schemas.records import Kind, Record, Source, decode_failure, decode_signature, decode_unit, join_records, kind_of
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request

SERVED = catalog()
PATIENT = catalog(Batching(shard_rows=4, max_rows=8, max_delay_ms=2.0))
NOTHING = Changes([], [])


def sharding(served: Catalog = SERVED) -> Sharding:
    return Sharding(served, default_priority=5)


def admitted(model: str = "rows", rows: int = 1, served: Catalog = SERVED, offset: int = 0, **parameters: int) -> bytes:
    message = request(model, [float(n) for n in range(rows)], parameters=parameters)
    return Admission(served, MAX_MESSAGE_BYTES).admit(message, Source(0, offset, int(NOW_MS)), NOW_MS)


def take_in(shard: Sharding, *records: bytes, now_ms: float = NOW_MS) -> list[bytes]:
    """What leaves without waiting."""
    return shard.on_frame(join_records(records), now_ms)


def waits(shard: Sharding, *records: bytes, now_ms: float = NOW_MS) -> None:
    """Takes in what does not leave by itself."""
    assert take_in(shard, *records, now_ms=now_ms) == []


def work(shard: Sharding, now_ms: float = NOW_MS, *, all_is_due: bool = False) -> list[bytes]:
    """All that is due."""
    records: list[bytes] = []
    while (more := shard.next(now_ms, all_is_due=all_is_due)) is not None:
        records += more
    return records


def units(records: list[bytes]) -> list[list[int]]:
    """The rows of the requests in each unit."""
    return [[record.rows for record in decode_unit(encoded)] for encoded in records]


# ---- what becomes of a request -------------------------------------------------------------------------------------


def test_small_requests_that_came_together_leave_in_one_unit() -> None:
    shard = sharding()
    waits(shard, admitted(rows=2), admitted(rows=1), admitted(rows=3))
    assert shard.next_deadline() == 0
    assert units(work(shard)) == [[2, 1, 3]]
    assert (shard.next(NOW_MS), shard.next_deadline(), shard.waiting_size_bytes) == (None, None, 0)


def test_units_leave_one_by_one_so_that_more_urgent_requests_can_come_between() -> None:
    shard = sharding()
    waits(shard, *[admitted(rows=4)] * 4)
    assert units(shard.next(NOW_MS) or []) == [[4, 4]]
    waits(shard, admitted(rows=1, priority=1))
    assert units(work(shard)) == [[1, 4], [4]]


def test_a_patient_model_waits_for_company_until_its_delay_is_over_or_the_input_has_ended() -> None:
    shard = sharding(PATIENT)
    waits(shard, admitted(rows=2))
    assert work(shard) == []
    waits(shard, admitted(rows=1), now_ms=NOW_MS + 1)
    assert work(shard, NOW_MS + 1) == []
    assert shard.next_deadline() == NOW_MS + 2
    assert units(work(shard, NOW_MS + 2)) == [[2, 1]]
    waits(shard, admitted(rows=3))
    assert units(work(shard, all_is_due=True)) == [[3]]


def test_a_patient_model_waits_no_longer_than_for_a_full_unit() -> None:
    shard = sharding(PATIENT)
    waits(shard, *[admitted(rows=2)] * 3)
    assert work(shard) == []
    waits(shard, admitted(rows=2))
    assert units(work(shard)) == [[2, 2, 2, 2]]


def test_one_model_s_patience_is_not_another_s() -> None:
    served = catalog(by_model={"pairs": Batching(max_delay_ms=50.0)})
    shard = sharding(served)
    waits(shard, admitted("pairs", 2, served), admitted("rows", 3, served))
    assert units(work(shard)) == [[3]]
    assert shard.next_deadline() == NOW_MS + 50


@pytest.mark.parametrize(("rows", "sizes"), [(5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])])
def test_a_big_request_becomes_its_opening_and_then_its_shards(rows: int, sizes: list[int]) -> None:
    shard = sharding()
    opening, *shards = [Record.decode(encoded) for encoded in take_in(shard, admitted(rows=rows))]
    assert (opening.kind, opening.total_rows) == (Kind.OPENING, rows)
    assert len(opening.original) > 0
    assert [(each.kind, each.rows) for each in shards] == [(Kind.SHARD, size) for size in sizes]
    assert [each.first_row for each in shards] == [4 * n for n in range(len(sizes))]
    assert (shard.next(NOW_MS), shard.next_deadline()) == (None, None)


def test_shards_of_a_model_with_a_fixed_batch_hold_whole_batches() -> None:
    served = catalog(Batching(shard_rows=5, max_rows=8))
    records = take_in(sharding(served), admitted("pairs", 10, served))
    assert [Record.decode(encoded).rows for encoded in records[1:]] == [4, 4, 2]
    served = catalog(Batching(shard_rows=1, max_rows=1))
    records = take_in(sharding(served), admitted("pairs", 6, served))
    assert [Record.decode(encoded).rows for encoded in records[1:]] == [2, 2, 2]


@given(st.sampled_from(["rows", "pairs"]), st.integers(1, 200), st.integers(1, 9))
def test_a_request_is_never_split_into_more_shards_than_a_window_can_afford(
    model: str, pairs: int, shard_rows: int
) -> None:
    served = catalog(Batching(shard_rows=shard_rows, max_rows=shard_rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding_module, "MAX_SHARDS", 7)
        records = take_in(sharding(served), admitted(model, 2 * pairs, served))
    shards = [Record.decode(record) for record in records if kind_of(record) is Kind.SHARD]
    if shards:
        assert len(shards) <= 7
        assert sum(shard.rows for shard in shards) == 2 * pairs
        assert all(shard.rows % 2 == 0 for shard in shards if model == "pairs")


def test_a_model_without_batch_axis_shares_no_unit() -> None:
    shard = sharding()
    waits(shard, *[admitted("whole", rows) for rows in (0, 1, 50)])
    assert units(work(shard)) == [[1], [1], [1]]


def test_a_rejection_passes_as_it_came_and_what_came_with_it_waits() -> None:
    rejection = Admission(SERVED, MAX_MESSAGE_BYTES).admit(b"hello", Source(0, 0, 0), NOW_MS)
    shard = sharding()
    assert take_in(shard, admitted(rows=1), rejection, admitted(rows=2)) == [rejection]
    assert units(work(shard)) == [[1, 2]]


def test_priority_0_counts_as_the_default() -> None:
    shard = sharding()
    waits(shard, *[admitted(rows=rows, priority=priority) for rows, priority in ((1, 6), (2, 0), (3, 5))])
    assert units(work(shard)) == [[2, 3, 1]]


# ---- deadlines -----------------------------------------------------------------------------------------------------


def check_expired(encoded: bytes) -> None:
    rejection = Record.decode(encoded)
    failure = decode_failure(rejection.signature)
    assert (rejection.kind, failure.code, failure.stage) == (Kind.REJECTION, "deadline_exceeded", "shard")
    assert (failure.model_name, failure.model_version, rejection.id) == ("rows", "10", "a")
    assert len(rejection.original) > 0


@pytest.mark.parametrize("rows", [1, 9])
def test_what_expired_on_its_way_becomes_a_rejection_that_names_its_model(rows: int) -> None:
    shard = sharding()
    leaving = take_in(shard, admitted(rows=rows, timeout=1_000), now_ms=NOW_MS + 1)
    [record] = leaving + work(shard, NOW_MS + 1)
    check_expired(record)


def test_what_expires_while_it_waits_becomes_a_rejection_ahead_of_the_next_unit() -> None:
    shard = sharding()
    waits(shard, admitted(rows=1, timeout=1_000, priority=9), admitted(rows=2))
    expired, unit = shard.next(NOW_MS + 1) or []
    check_expired(expired)
    assert units([unit]) == [[2]]


def test_what_expires_is_answered_though_no_unit_is_due() -> None:
    shard = sharding(PATIENT)
    waits(shard, admitted(rows=1, timeout=1_000), admitted(rows=2))
    assert shard.next_deadline() == NOW_MS + 1
    [expired] = shard.next(NOW_MS + 1) or []
    check_expired(expired)
    assert shard.next(NOW_MS + 1) is None


# ---- what state learns ---------------------------------------------------------------------------------------------


def test_state_never_hears_of_what_leaves_in_the_call_that_brought_it() -> None:
    shard = sharding()
    take_in(shard, admitted(rows=1), admitted(rows=9), admitted(rows=2, timeout=1_000))
    assert len(work(shard, NOW_MS + 1)) == 2
    assert shard.settle() == NOTHING


def test_state_learns_of_what_stays_and_later_of_its_departure_each_once() -> None:
    shard = sharding()
    first, second, third = (admitted(rows=4, offset=offset) for offset in range(3))
    waits(shard, first, second, third)
    shard.next(NOW_MS)
    assert shard.settle() == Changes([(2, third)], [])
    assert shard.settle() == NOTHING
    fourth = admitted(rows=8, offset=3)
    take_in(shard, admitted(rows=1, offset=4, priority=1), fourth)
    assert units(work(shard)) == [[1, 4]]
    assert shard.settle() == Changes([], [2])
    assert shard.settle() == NOTHING


def test_state_learns_of_arrivals_in_their_order_whatever_leaves_between_them() -> None:
    shard = sharding(PATIENT)
    records = [admitted(rows=1, offset=offset, priority=offset % 2) for offset in range(4)]
    waits(shard, *records)
    assert shard.settle() == Changes(list(enumerate(records)), [])
    waits(shard, admitted(rows=4, offset=4, priority=3))
    assert units(work(shard)) == [[1, 1, 4, 1, 1]]
    assert sorted(shard.settle().departed) == [0, 1, 2, 3]


def test_what_expires_departs_from_state_too_if_it_was_there() -> None:
    shard = sharding(PATIENT)
    waits(shard, admitted(timeout=1_000))
    shard.settle()
    waits(shard, admitted(timeout=1_000))
    assert len(work(shard, NOW_MS + 1)) == 2
    assert shard.settle() == Changes([], [0])


def test_what_waits_keeps_no_frame_alive() -> None:
    shard, record = sharding(PATIENT), admitted(rows=1)
    frame = bytearray(join_records([record, admitted(rows=9), admitted("whole")]))
    with memoryview(frame) as view:
        shard.on_frame(view, NOW_MS)
    work(shard)
    with pytest.raises(BufferError):  # the control: before it settles it does
        frame.clear()
    [(_, encoded)] = shard.settle().arrived
    assert (type(encoded), encoded) == (bytes, record)
    frame.clear()
    assert units(work(shard, NOW_MS + 2)) == [[1]]


def test_what_waited_is_restored_with_its_numbers_and_leaves_at_once_in_its_order() -> None:
    before = sharding(PATIENT)
    waits(before, *[admitted(rows=rows, offset=rows) for rows in (1, 2, 3)])
    arrived = before.settle().arrived
    after = sharding(PATIENT)
    after.restore(reversed(arrived))  # Flink's state has an order of its own
    assert after.settle() == NOTHING
    assert after.waiting_size_bytes == before.waiting_size_bytes
    assert after.next_deadline() == 0
    assert units(work(after, NOW_MS + 500)) == [[1, 2, 3]]
    assert after.settle() == Changes([], [0, 1, 2])


def test_what_comes_after_a_failure_gets_a_number_of_its_own() -> None:
    waiting, newcomer = admitted(offset=0), admitted(offset=1)
    after = sharding(PATIENT)
    after.restore([(7, waiting)])
    waits(after, newcomer)
    assert after.settle() == Changes([(8, newcomer)], [])


# ---- what must not happen, and does --------------------------------------------------------------------------------


def test_what_waited_for_a_model_that_an_upgrade_took_away_goes_on_to_be_answered() -> None:
    after = sharding(catalog(without=["rows"]))
    after.restore([(0, admitted("rows"))])
    waits(after, admitted("rows", 2), admitted(rows=9))  # the last one whole: nobody knows how to split it
    assert units(work(after)) == [[1], [2], [9]]
    assert after.settle() == Changes([], [0])


def test_a_defect_of_ours_becomes_the_answer_to_its_request_and_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(sharding_module, "shards", fail)
    shard = sharding()
    [encoded] = take_in(shard, admitted(rows=1), admitted(rows=9), admitted(rows=2))
    rejection = Record.decode(encoded)
    failure = decode_failure(rejection.signature)
    assert (rejection.kind, rejection.id) == (Kind.REJECTION, "a")
    assert (failure.code, failure.message, failure.stage) == ("internal_error", "RuntimeError: defect", "shard")
    assert units(work(shard)) == [[1, 2]]


@pytest.mark.parametrize("unknown", [b"\x01", b"\xff" * 100, b"\x01" + b"\xff" * 200])
def test_what_is_no_frame_is_passed_on_to_be_buried(unknown: bytes) -> None:
    shard = sharding()
    assert shard.on_frame(unknown, NOW_MS) == [unknown]
    assert (shard.next_deadline(), shard.settle()) == (None, NOTHING)


@pytest.mark.parametrize("kind", [0, 1, 9])
def test_what_is_no_record_is_passed_on_to_be_buried_and_its_neighbours_wait(kind: int) -> None:
    unknown = bytes([kind, 0, 0, 0, 16, 0, 0, 0]) + bytes(8)
    shard = sharding()
    assert take_in(shard, admitted(rows=1), unknown, admitted(rows=2)) == [unknown]
    assert units(work(shard)) == [[1, 2]]


def test_an_empty_frame_is_nothing() -> None:
    assert sharding().on_frame(b"", NOW_MS) == []


# ---- whatever happens ----------------------------------------------------------------------------------------------

DELAYS_MS = {"rows": 0.0, "pairs": 3.0, "whole": 0.0}
MIXED = catalog(
    by_model={model: Batching(shard_rows=6, max_rows=8, max_delay_ms=ms) for model, ms in DELAYS_MS.items()}
)

arrivals = st.lists(
    st.tuples(
        st.sampled_from(sorted(DELAYS_MS)),
        st.integers(1, 4),
        st.integers(0, 6),
        st.sampled_from([None, None, None, 1, 3]),
    ),
    max_size=5,
)


class ShardingMachine(RuleBasedStateMachine):
    """The operator beside the state that it reports, and failures that leave only the state.

    Each request has an offset of its own. `inside` is what must wait, by offset; what a call that fails has read is
    read again after it, as Kafka's offsets go back with the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.shard = sharding(MIXED)
        self.state: dict[int, bytes] = {}
        self.inside: dict[int, Record] = {}
        self.offset = 0

    def message(self, model: str, pairs: int, priority: int, timeout_ms: int | None) -> bytes:
        self.offset += 1
        parameters = {"priority": priority} | ({} if timeout_ms is None else {"timeout": timeout_ms * 1000})
        encoded = request(model, [float(n) for n in range(2 * pairs)], parameters=parameters)
        return Admission(MIXED, MAX_MESSAGE_BYTES).admit(encoded, Source(0, self.offset, int(self.now_ms)), self.now_ms)

    @rule(step_ms=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, step_ms: float) -> None:
        self.now_ms += step_ms

    @rule(requests=arrivals, units=st.integers(0, 4))
    def a_frame_comes(self, requests: list[tuple[str, int, int, int | None]], units: int) -> None:
        records = [self.message(*each) for each in requests]
        self.take_in(records)
        self.work(units)
        self.settle()

    @rule(units=st.integers(0, 4), all_is_due=st.booleans())
    def a_timer_fires(self, units: int, all_is_due: bool) -> None:
        self.work(units, all_is_due=all_is_due)
        self.settle()

    @rule(requests=arrivals, units=st.integers(0, 4))
    def a_call_fails_and_what_it_read_comes_again(
        self, requests: list[tuple[str, int, int, int | None]], units: int
    ) -> None:
        records, before = [self.message(*each) for each in requests], dict(self.inside)
        self.take_in(records)
        self.work(units)
        self.inside = before
        self.restore()
        self.take_in(records)
        self.settle()

    @precondition(lambda self: self.inside)
    @rule()
    def restore(self) -> None:
        self.shard = sharding(MIXED)
        self.shard.restore(self.state.items())
        if self.state:
            assert self.shard.next_deadline() == 0

    def take_in(self, records: list[bytes]) -> None:
        leaving = take_in(self.shard, *records, now_ms=self.now_ms)
        split = {each.source.offset: each for each in map(Record.decode, records) if is_split(each)}
        openings = [each for each in map(Record.decode, leaving) if each.kind is Kind.OPENING]
        assert [opening.source.offset for opening in openings] == list(split)
        self.inside |= {each.source.offset: each for each in map(Record.decode, records) if not is_split(each)}

    def work(self, limit: int, *, all_is_due: bool = False) -> None:
        for _ in range(limit):
            records = self.shard.next(self.now_ms, all_is_due=all_is_due)
            late = {n for n, each in self.inside.items() if 0 < each.deadline_ms <= self.now_ms}
            if records is None:
                assert not late
                assert not any(all_is_due or is_always_due(each) for each in self.inside.values())
                deadline_ms = self.shard.next_deadline()
                assert deadline_ms is None or deadline_ms > self.now_ms
                return
            rejected = [Record.decode(each) for each in records if kind_of(each) is Kind.REJECTION]
            assert {each.source.offset for each in rejected} == late
            assert len(rejected) == len(late)
            for offset in late:
                del self.inside[offset]
            if len(records) > len(rejected):
                self.check_unit(decode_unit(records[-1]))

    def check_unit(self, unit: list[Record]) -> None:
        assert len(unit) == 1 or sum(each.rows for each in unit) <= 8
        [signature] = {each.signature for each in unit}
        group = sorted((each for each in self.inside.values() if each.signature == signature), key=urgency)
        assert unit == group[: len(unit)]
        first = [urgency(each) for each in self.inside.values() if is_always_due(each)]
        assert all(urgency(unit[0]) <= each for each in first)
        for each in unit:
            del self.inside[each.source.offset]

    def settle(self) -> None:
        changes = self.shard.settle()
        for number in changes.departed:
            del self.state[number]
        for number, encoded in changes.arrived:
            assert number not in self.state
            self.state[number] = encoded

    @invariant()
    def state_is_what_waits_in_the_order_of_arrival(self) -> None:
        assert [Record.decode(self.state[number]) for number in sorted(self.state)] == list(self.inside.values())
        assert self.shard.waiting_size_bytes == sum(map(len, self.state.values()))
        assert (self.shard.next_deadline() is None) == (not self.state)

    def teardown(self) -> None:
        self.a_timer_fires(len(self.inside) + 1, all_is_due=True)
        assert not self.state


def is_split(record: Record) -> bool:
    return decode_signature(record.signature).model_name != "whole" and record.rows > 6


def is_always_due(record: Record) -> bool:
    """A request for a model that has no delay."""
    return not DELAYS_MS[decode_signature(record.signature).model_name]


def urgency(record: Record) -> tuple[int, float, int]:
    return record.priority or 5, record.deadline_ms or float("inf"), record.source.offset


ShardingMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestEverythingLeavesOnceThoughCallsFail = ShardingMachine.TestCase
