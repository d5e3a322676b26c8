"""Sharding: the big is split, the small share a batch, and what cannot be judged goes on to be answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.core import sharding as sharding_module
from operators.core.admission import Admission
from operators.core.sharding import Emission, Sharding
from schemas.model import Batching, Catalog
from schemas.records import Kind, Record, Source, decode_failure, decode_unit, kind_of
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request

SERVED = catalog()
BUSY_MS, IDLE_MS = 0.0, 10.0


def sharding(served: Catalog = SERVED) -> Sharding:
    return Sharding(served, default_priority=5, idle_gap_ms=1.0)


def admitted(model: str = "rows", rows: int = 1, served: Catalog = SERVED, **parameters: int) -> bytes:
    message = request(model, [float(n) for n in range(rows)], parameters=parameters)
    return Admission(served, MAX_MESSAGE_BYTES).admit(message, Source(0, rows, int(NOW_MS)), NOW_MS)


def units(emission: Emission) -> list[list[int]]:
    """The rows of the requests in each unit."""
    return [[record.rows for record in decode_unit(encoded)] for encoded in emission.records]


def test_a_small_request_waits_in_a_busy_task_and_goes_at_once_in_an_idle_one() -> None:
    shard = sharding()
    emission = shard.on_record(admitted(rows=2), NOW_MS, BUSY_MS)
    assert (emission.records, emission.kept, emission.drained) == ((), True, False)
    assert shard.next_deadline() == NOW_MS + 2
    assert units(shard.on_timer(NOW_MS + 2)) == [[2]]
    assert units(sharding().on_record(admitted(rows=2), NOW_MS, IDLE_MS)) == [[2]]


def test_a_unit_that_is_full_takes_all_that_waited_with_it() -> None:
    shard = sharding()
    for _ in range(3):
        assert shard.on_record(admitted(rows=2), NOW_MS, BUSY_MS).kept
    assert len(shard.snapshot()) == 3
    emission = shard.on_record(admitted(rows=2), NOW_MS, BUSY_MS)
    assert (units(emission), emission.drained, emission.kept) == ([[2, 2, 2, 2]], True, False)
    assert (shard.snapshot(), shard.next_deadline()) == ([], None)


@pytest.mark.parametrize(("rows", "sizes"), [(5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])])
def test_a_big_request_becomes_its_opening_and_then_its_shards(rows: int, sizes: list[int]) -> None:
    emission = sharding().on_record(admitted(rows=rows), NOW_MS, BUSY_MS)
    opening, *shards = [Record.decode(encoded) for encoded in emission.records]
    assert (opening.kind, opening.total_rows, emission.kept) == (Kind.OPENING, rows, False)
    assert len(opening.original) > 0
    assert [(shard.kind, shard.rows) for shard in shards] == [(Kind.SHARD, size) for size in sizes]
    assert [shard.first_row for shard in shards] == [4 * n for n in range(len(sizes))]


def test_shards_of_a_model_with_a_fixed_batch_hold_whole_batches() -> None:
    served = catalog(Batching(shard_rows=5, max_rows=8))
    emission = sharding(served).on_record(admitted("pairs", 10, served), NOW_MS, BUSY_MS)
    assert [Record.decode(encoded).rows for encoded in emission.records[1:]] == [4, 4, 2]
    served = catalog(Batching(shard_rows=1, max_rows=1))
    emission = sharding(served).on_record(admitted("pairs", 6, served), NOW_MS, BUSY_MS)
    assert [Record.decode(encoded).rows for encoded in emission.records[1:]] == [2, 2, 2]


@given(st.sampled_from(["rows", "pairs"]), st.integers(1, 200), st.integers(1, 9))
def test_a_request_is_never_split_into_more_shards_than_a_window_can_afford(
    model: str, pairs: int, shard_rows: int
) -> None:
    served = catalog(Batching(shard_rows=shard_rows, max_rows=shard_rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding_module, "MAX_SHARDS", 7)
        emission = sharding(served).on_record(admitted(model, 2 * pairs, served), NOW_MS, BUSY_MS)
    shards = [Record.decode(record) for record in emission.records if kind_of(record) is Kind.SHARD]
    if shards:
        assert len(shards) <= 7
        assert sum(shard.rows for shard in shards) == 2 * pairs
        assert all(shard.rows % 2 == 0 for shard in shards if model == "pairs")


def test_a_model_without_batch_axis_shares_no_unit() -> None:
    shard = sharding()
    for rows in (0, 1, 50):
        assert units(shard.on_record(admitted("whole", rows), NOW_MS, BUSY_MS)) == [[1]]


def test_a_rejection_passes_as_it_came() -> None:
    rejection = Admission(SERVED, MAX_MESSAGE_BYTES).admit(b"hello", Source(0, 0, 0), NOW_MS)
    assert sharding().on_record(rejection, NOW_MS, BUSY_MS) == Emission([rejection])


def test_priority_0_counts_as_the_default() -> None:
    shard = sharding()
    for rows, priority in ((1, 6), (2, 0), (3, 5)):
        shard.on_record(admitted(rows=rows, priority=priority), NOW_MS, BUSY_MS)
    assert units(shard.on_timer(NOW_MS + 2)) == [[2, 3, 1]]


@pytest.mark.parametrize("rows", [1, 9])
def test_what_expired_on_its_way_becomes_a_rejection_that_names_its_model(rows: int) -> None:
    shard = sharding()
    encoded = admitted(rows=rows, timeout=1_000)
    [record] = shard.on_record(encoded, NOW_MS + 1, BUSY_MS).records
    check_expired(record)


def check_expired(encoded: bytes) -> None:
    rejection = Record.decode(encoded)
    failure = decode_failure(rejection.signature)
    assert (rejection.kind, failure.code, failure.stage) == (Kind.REJECTION, "deadline_exceeded", "shard")
    assert (failure.model_name, failure.model_version, rejection.id) == ("rows", "10", "a")
    assert len(rejection.original) > 0


def test_what_expires_while_it_waits_becomes_a_rejection_too() -> None:
    shard = sharding()
    shard.on_record(admitted(rows=1, timeout=1_000), NOW_MS, BUSY_MS)
    shard.on_record(admitted(rows=2), NOW_MS, BUSY_MS)
    expired, unit = shard.on_timer(NOW_MS + 2).records
    check_expired(expired)
    assert [record.rows for record in decode_unit(unit)] == [2]


def test_what_waited_is_restored_and_leaves_at_the_next_timer() -> None:
    before = sharding()
    for rows in (1, 2, 3):
        before.on_record(admitted(rows=rows), NOW_MS, BUSY_MS)
    after = sharding()
    after.restore(before.snapshot(), NOW_MS + 500)
    assert after.snapshot() == before.snapshot()
    assert after.next_deadline() == NOW_MS + 500
    assert units(after.on_timer(NOW_MS + 500)) == [[1, 2, 3]]


@pytest.mark.parametrize("leave", ["on_record", "on_timer", "flush"])
def test_what_waited_for_a_model_that_an_upgrade_took_away_goes_on_to_be_answered(leave: str) -> None:
    waiting = admitted("rows")
    after = sharding(catalog(without=["rows"]))
    if leave == "on_record":
        assert units(after.on_record(waiting, NOW_MS, BUSY_MS)) == [[1]]
        assert units(after.on_record(admitted(rows=9), NOW_MS, BUSY_MS)) == [[9]]  # whole: nobody knows how to split it
        return
    after.restore([waiting], NOW_MS)
    assert units(getattr(after, leave)(NOW_MS)) == [[1]]
    assert after.snapshot() == []


def test_a_defect_of_ours_becomes_the_answer_to_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(sharding_module, "shards", fail)
    shard = sharding()
    [encoded] = shard.on_record(admitted(rows=9), NOW_MS, BUSY_MS).records
    rejection = Record.decode(encoded)
    failure = decode_failure(rejection.signature)
    assert (rejection.kind, rejection.id) == (Kind.REJECTION, "a")
    assert (failure.code, failure.message, failure.stage) == ("internal_error", "RuntimeError: defect", "shard")
    assert shard.on_record(admitted(rows=2), NOW_MS, BUSY_MS).kept  # and the next one is served


@pytest.mark.parametrize("unknown", [b"", b"\x01", b"\xff" * 100, b"\x01" + b"\xff" * 200])
def test_what_is_no_record_is_passed_on_to_be_buried(unknown: bytes) -> None:
    assert sharding().on_record(unknown, NOW_MS, BUSY_MS).records == [unknown]
