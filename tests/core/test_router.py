"""Router: large requests are split, small ones share a batch."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Shard, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling import router as sharding_module
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.batch_queue import QueueChanges
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.model import Batching, Catalog
from anabranch.schemas.records import AnyRecord, OpeningRecord, ShardRecord, Source, UnitRecord, decode_record
from anabranch.schemas.signatures import decode_signature
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request
from tests.core.routed_queue import RoutedQueue

SERVED = catalog()
PATIENT = catalog(Batching(shard_rows=4, max_rows=8, max_delay_ms=2.0))
NOTHING = QueueChanges([], [])


def routed(served: Catalog = SERVED) -> RoutedQueue:
    return RoutedQueue(served, lambda _: BatchCostModel())


def admitted(
    model: str = "rows", rows: int = 1, served: Catalog = SERVED, offset: int = 0, **parameters: int
) -> Request:
    message = request(model, [float(n) for n in range(rows)], parameters=parameters)
    return admit(message, served, offset, NOW_MS)


def admit(message: bytes, served: Catalog, offset: int, now_ms: float) -> Request:
    found = Admission(served, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(
        message, Source(0, offset, int(now_ms)), now_ms
    )
    assert isinstance(found, Request)
    return found


def shard_rows_in(records: Sequence[AnyRecord]) -> list[int]:
    return [record.segment.rows for record in records if isinstance(record, ShardRecord)]


def take_in(shard: RoutedQueue, *requests: Request, now_ms: float = NOW_MS) -> list[AnyRecord]:
    """Records that leave at once."""
    return [decode_record(output.value) for each in requests for output in shard.take_in(each, now_ms)]


def waits(shard: RoutedQueue, *requests: Request, now_ms: float = NOW_MS) -> None:
    """Takes in requests, all of which are queued."""
    assert take_in(shard, *requests, now_ms=now_ms) == []


def work(shard: RoutedQueue, now_ms: float = NOW_MS, *, all_is_due: bool = False) -> list[list[int]]:
    """Rows of the requests in each due batch; none expires."""
    units: list[list[int]] = []
    while (departure := shard.next(now_ms, all_is_due=all_is_due)) is not None:
        assert departure.expired == []
        units.append([each.rows for each in departure.batch])
    return units


# ---- routes -------------------------------------------------------------------------------------------------------


def test_router_small_requests_share_a_batch() -> None:
    shard = routed()
    waits(shard, admitted(rows=2), admitted(rows=1), admitted(rows=3))
    assert shard.next_deadline() == 0
    assert work(shard) == [[2, 1, 3]]
    assert (shard.next(NOW_MS), shard.next_deadline(), shard.queue.size_bytes) == (None, None, 0)


def test_router_batches_leave_one_by_one() -> None:
    shard = routed()
    waits(shard, *[admitted(rows=4) for _ in range(4)])
    departure = shard.next(NOW_MS)
    assert departure is not None
    assert [each.rows for each in departure.batch] == [4, 4]
    waits(shard, admitted(rows=1, priority=1))
    assert work(shard) == [[1, 4], [4]]


def test_router_delayed_model_waits_until_delay_or_end() -> None:
    shard = routed(PATIENT)
    waits(shard, admitted(rows=2))
    assert work(shard) == []
    waits(shard, admitted(rows=1), now_ms=NOW_MS + 1)
    assert work(shard, NOW_MS + 1) == []
    assert shard.next_deadline() == NOW_MS + 2
    assert work(shard, NOW_MS + 2) == [[2, 1]]
    waits(shard, admitted(rows=3))
    assert work(shard, all_is_due=True) == [[3]]


def test_router_delayed_model_runs_a_full_batch_at_once() -> None:
    shard = routed(PATIENT)
    waits(shard, *[admitted(rows=2) for _ in range(3)])
    assert work(shard) == []
    waits(shard, admitted(rows=2))
    assert work(shard) == [[2, 2, 2, 2]]


def test_router_delay_of_one_model_does_not_delay_another() -> None:
    served = catalog(by_model={"pairs": Batching(max_delay_ms=50.0)})
    shard = routed(served)
    waits(shard, admitted("pairs", 2, served), admitted("rows", 3, served))
    assert work(shard) == [[3]]
    assert shard.next_deadline() == NOW_MS + 50


def test_router_requests_of_a_topic_made_anew_have_other_windows() -> None:
    keys = set()
    for sent_ms in (int(NOW_MS) - 1000, int(NOW_MS)):
        of_topic = admitted(rows=9, offset=7)
        of_topic.source = Source(0, 7, sent_ms)
        window, *shards = routed().take_in(of_topic, NOW_MS)
        assert isinstance(window, WindowPart)
        keys.add(window.key)
        assert {window_key(ShardRecord.decode(each.value).segment.source) for each in shards} == {window.key}
    assert len(keys) == 2


@pytest.mark.parametrize(("rows", "sizes"), [(5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])])
def test_router_large_request_becomes_opening_and_shards(rows: int, sizes: list[int]) -> None:
    shard = routed()
    first, *others = shard.take_in(big := admitted(rows=rows, offset=7), NOW_MS)
    assert isinstance(first, WindowPart)
    assert first.key == f"0-7-{int(NOW_MS)}"
    assert all(isinstance(other, Shard) for other in others)
    opening, shards = OpeningRecord.decode(first.value), [ShardRecord.decode(other.value).segment for other in others]
    assert (opening.segment.total_rows, opening.original) == (rows, big.original)
    assert [each.rows for each in shards] == sizes
    assert [each.first_row for each in shards] == [4 * n for n in range(len(sizes))]
    assert (shard.next(NOW_MS), shard.next_deadline()) == (None, None)


def test_router_shards_of_a_fixed_batch_hold_whole_batches() -> None:
    served = catalog(Batching(shard_rows=5, max_rows=8))
    records = take_in(routed(served), admitted("pairs", 10, served))
    assert shard_rows_in(records) == [4, 4, 2]
    served = catalog(Batching(shard_rows=1, max_rows=1))
    records = take_in(routed(served), admitted("pairs", 6, served))
    assert shard_rows_in(records) == [2, 2, 2]


@pytest.mark.parametrize(
    ("model", "run_ms", "sizes"),
    [
        ("rows", [], [4, 4, 1]),
        ("rows", [25.0, 50.0, 100.0], [4, 4, 1]),
        ("rows", [50.0, 90.0, 180.0], [2, 2, 2, 2, 1]),
        ("rows", [500.0, 1000.0, 2000.0], [1] * 9),
        ("rows", [500.0, 600.0, 700.0], [4, 4, 1]),
        ("pairs", [500.0, 1000.0, 2000.0], [2, 2, 2, 2]),
    ],
)
def test_router_shards_of_a_slow_model_take_100_ms(model: str, run_ms: list[float], sizes: list[int]) -> None:
    """Unless smaller ones would waste time."""
    measured = [Measurement(2**power, each) for power, each in enumerate(run_ms)]
    shard = RoutedQueue(SERVED, lambda _: BatchCostModel(measured))
    assert shard_rows_in(take_in(shard, admitted(model, sum(sizes)))) == sizes


@given(st.sampled_from(["rows", "pairs"]), st.integers(1, 200), st.integers(1, 9))
def test_router_number_of_shards_is_bounded(model: str, pairs: int, shard_rows: int) -> None:
    served = catalog(Batching(shard_rows=shard_rows, max_rows=shard_rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding_module, "MAX_SHARDS", 7)
        records = take_in(routed(served), admitted(model, 2 * pairs, served))
    shards = [record.segment for record in records if isinstance(record, ShardRecord)]
    if shards:
        assert len(shards) <= 7
        assert sum(shard.rows for shard in shards) == 2 * pairs
        assert all(shard.rows % 2 == 0 for shard in shards if model == "pairs")


def test_router_requests_without_batch_axis_run_alone() -> None:
    shard = routed()
    waits(shard, *[admitted("whole", rows) for rows in (0, 1, 50)])
    assert work(shard) == [[1], [1], [1]]


def test_router_priority_0_counts_as_the_default() -> None:
    shard = routed()
    waits(shard, *[admitted(rows=rows, priority=priority) for rows, priority in ((1, 6), (2, 0), (3, 5))])
    assert work(shard) == [[2, 3, 1]]


# ---- deadlines -----------------------------------------------------------------------------------------------------


def test_router_expired_request_leaves_with_the_next_batch() -> None:
    shard = routed()
    waits(shard, late := admitted(rows=1, timeout=1_000, priority=9), good := admitted(rows=2))
    departure = shard.next(NOW_MS + 1)
    assert departure is not None
    assert (departure.expired, departure.batch) == ([late], [good])


def test_router_expired_request_leaves_without_a_due_batch() -> None:
    shard = routed(PATIENT)
    waits(shard, late := admitted(rows=1, timeout=1_000), admitted(rows=2))
    assert shard.next_deadline() == NOW_MS + 1
    departure = shard.next(NOW_MS + 1)
    assert departure is not None
    assert (departure.expired, departure.batch) == ([late], [])
    assert shard.next(NOW_MS + 1) is None


# ---- state --------------------------------------------------------------------------------------------------------


def test_router_request_that_left_in_its_call_is_not_stored() -> None:
    shard = routed()
    take_in(shard, admitted(rows=1), admitted(rows=9), admitted(rows=2, timeout=1_000))
    assert shard.next(NOW_MS + 1) is not None
    assert shard.settle() == NOTHING


def test_router_queued_request_is_stored_and_removed_once() -> None:
    shard = routed()
    first, second, third = (admitted(rows=4, offset=offset) for offset in range(3))
    waits(shard, first, second, third)
    shard.next(NOW_MS)
    assert shard.settle() == QueueChanges([third], [])
    assert (third.number, third.stored) == (2, True)
    assert shard.settle() == NOTHING
    fourth = admitted(rows=8, offset=3)
    take_in(shard, admitted(rows=1, offset=4, priority=1), fourth)
    assert work(shard) == [[1, 4]]
    assert shard.settle() == QueueChanges([], [2])
    assert shard.settle() == NOTHING


def test_router_arrivals_are_stored_in_order() -> None:
    shard = routed(PATIENT)
    records = [admitted(rows=1, offset=offset, priority=offset % 2) for offset in range(4)]
    waits(shard, *records)
    assert shard.settle() == QueueChanges(records, [])
    waits(shard, admitted(rows=4, offset=4, priority=3))
    assert work(shard) == [[1, 1, 4, 1, 1]]
    assert sorted(shard.settle().departed) == [0, 1, 2, 3]


def test_router_expired_request_leaves_state() -> None:
    shard = routed(PATIENT)
    waits(shard, admitted(timeout=1_000))
    shard.settle()
    waits(shard, admitted(timeout=1_000))
    departure = shard.next(NOW_MS + 1)
    assert departure is not None
    assert len(departure.expired) == 2
    assert shard.settle() == QueueChanges([], [0])


def test_router_restored_requests_leave_in_order() -> None:
    before = routed(PATIENT)
    waits(before, *[admitted(rows=rows, offset=rows) for rows in (1, 2, 3)])
    held = [(each.number, admitted(rows=each.rows, offset=each.rows)) for each in before.settle().arrived]
    after = routed(PATIENT)
    for number, each in held:
        assert after.restore(number, each) == []
    assert after.settle() == NOTHING
    assert after.queue.size_bytes == before.queue.size_bytes
    assert after.next_deadline() == 0
    assert work(after, NOW_MS + 500) == [[1, 2, 3]]
    assert after.settle() == QueueChanges([], [0, 1, 2])


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_router_number_after_a_restore_is_unique(is_forgotten: bool) -> None:
    after, newcomer = routed(PATIENT), admitted(offset=1)
    if is_forgotten:
        after.forget(7)
    else:
        after.restore(7, admitted(offset=0))
    waits(after, newcomer)
    assert after.settle() == QueueChanges([newcomer], [7] * is_forgotten)
    assert newcomer.number == 8


def test_router_restored_request_over_new_limit_is_split() -> None:
    after = routed()
    opening, *shards = [decode_record(output.value) for output in after.restore(3, admitted(rows=9))]
    assert (type(opening), shard_rows_in(shards)) == (OpeningRecord, [4, 4, 1])
    assert after.settle() == QueueChanges([], [3])


# ---- any sequence -------------------------------------------------------------------------------------------------

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


class RouterMachine(RuleBasedStateMachine):
    """A queue beside the state that it reports, with failures that leave only the state.

    Each request has its own offset. `inside` holds the queued requests by offset. A failed call is repeated, because
    offsets of Kafka go back with the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.shard = routed(MIXED)
        self.state: dict[int, Request] = {}
        self.inside: dict[int, Request] = {}
        self.offset = 0

    def message(self, model: str, pairs: int, priority: int, timeout_ms: int | None) -> Request:
        self.offset += 1
        parameters = {"priority": priority} | ({} if timeout_ms is None else {"timeout": timeout_ms * 1000})
        encoded = request(model, [float(n) for n in range(2 * pairs)], parameters=parameters)
        return admit(encoded, MIXED, self.offset, self.now_ms)

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
        self.take_in([again(each) for each in records])
        self.settle()

    @precondition(lambda self: self.inside)
    @rule()
    def restore(self) -> None:
        self.shard = routed(MIXED)
        self.state = {number: again(each) for number, each in sorted(self.state.items())}
        self.inside = {each.source.offset: each for each in self.state.values()}
        for number, each in self.state.items():
            assert self.shard.restore(number, each) == []
        if self.state:
            assert self.shard.next_deadline() == 0

    def take_in(self, requests: list[Request]) -> None:
        leaving = take_in(self.shard, *requests, now_ms=self.now_ms)
        split = [each.source.offset for each in requests if is_split(each)]
        assert [each.source.offset for each in leaving if isinstance(each, OpeningRecord)] == split
        self.inside |= {each.source.offset: each for each in requests if not is_split(each)}

    def work(self, limit: int, *, all_is_due: bool = False) -> None:
        for _ in range(limit):
            departure = self.shard.next(self.now_ms, all_is_due=all_is_due)
            late = {n for n, each in self.inside.items() if 0 < each.deadline_ms <= self.now_ms}
            if departure is None:
                assert not late
                assert not any(all_is_due or is_always_due(each) for each in self.inside.values())
                deadline_ms = self.shard.next_deadline()
                assert deadline_ms is None or deadline_ms > self.now_ms
                return
            assert sorted(each.source.offset for each in departure.expired) == sorted(late)
            for offset in late:
                del self.inside[offset]
            if departure.batch:
                self.check_unit(departure.batch)

    def check_unit(self, unit: list[Request]) -> None:
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
        for each in changes.arrived:
            assert each.number not in self.state
            self.state[each.number] = each

    @invariant()
    def state_is_what_waits_in_the_order_of_arrival(self) -> None:
        assert [self.state[number] for number in sorted(self.state)] == list(self.inside.values())
        assert self.shard.queue.size_bytes == sum(each.size_bytes for each in self.state.values())
        assert (self.shard.next_deadline() is None) == (not self.state)

    def teardown(self) -> None:
        self.a_timer_fires(len(self.inside) + 1, all_is_due=True)
        assert not self.state


def again(each: Request) -> Request:
    """The request as it is read again."""
    return replace(each, number=-1, gone=False, stored=False)


def is_split(record: Request) -> bool:
    return decode_signature(record.signature).model_name != "whole" and record.rows > 6


def is_always_due(record: Request) -> bool:
    """True for a request of a model without delay."""
    return not DELAYS_MS[decode_signature(record.signature).model_name]


def urgency(record: Request) -> tuple[float, int]:
    return SchedulingPolicy().urgency(record.arrived_ms, record.deadline_ms, record.priority), record.source.offset


RouterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestRouterModel = pytest.mark.slow(RouterMachine.TestCase)


@pytest.mark.parametrize(
    ("row_ms", "max_rows", "sizes"),
    [(17.0, None, [1] * 9), (4.0, None, [2, 2, 2, 2, 1]), (0.001, None, [9]), (0.0, None, [9]), (4.0, 8, [8, 1])],
)
def test_router_batch_for_stages_takes_some_milliseconds(row_ms: float, max_rows: int | None, sizes: list[int]) -> None:
    served = in_timed_stages(catalog(Batching(max_rows=max_rows)), row_ms)
    shard = routed(served)
    waits(shard, *[admitted("cut", offset=offset, served=served) for offset in range(9)])
    assert [len(unit) for unit in work(shard)] == sizes


@pytest.mark.parametrize(("is_capped", "sizes"), [(True, [2, 2, 2, 2, 1]), (False, [6, 3])])
def test_router_batch_for_stages_is_a_trial_or_a_wish(is_capped: bool, sizes: list[int]) -> None:
    """What a trial allows is a limit, not what the model's file asks for."""
    served = in_timed_stages(catalog(Batching(max_rows=6)), 4.0)
    served.models["cut"]["1"] = dataclasses.replace(served.models["cut"]["1"], is_capped=is_capped)
    shard = routed(served)
    waits(shard, *[admitted("cut", offset=offset, served=served) for offset in range(9)])
    assert [len(unit) for unit in work(shard)] == sizes


@pytest.mark.parametrize(
    ("row_ms", "sizes"), [(0.0, [4, 4, 1]), (25.0, [4, 4, 1]), (40.0, [2, 2, 2, 2, 1]), (400.0, [1] * 9)]
)
def test_router_units_of_a_slow_model_take_100_ms(row_ms: float, sizes: list[int]) -> None:
    served = in_timed_stages(catalog(), row_ms)
    records = take_in(routed(served), admitted("cut", 9, served))
    assert [record.rows for record in records if isinstance(record, UnitRecord)] == sizes


def in_timed_stages(served: Catalog, row_ms: float) -> Catalog:
    """With a first stage of this time a row, and quicker ones after it."""
    cut = served.models["cut"]["1"]
    stages = tuple(dataclasses.replace(stage, row_ms=row_ms / number) for number, stage in enumerate(cut.stages, 1))
    served.models["cut"]["1"] = dataclasses.replace(cut, stages=stages)
    return served
