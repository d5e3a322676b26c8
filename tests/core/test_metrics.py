"""Meter: counts are drained once, and buckets are cumulative."""

import string

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.metrics import LIMITS_US, TOTAL, Meter, bucket_of, percentile_us, read_left_out
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_queue import LONG_AGO_MS
from anabranch.schemas.latency_breakdown import PHASES, LatencyBreakdown
from anabranch.schemas.model import LeftOut
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Signature

SIGNATURE = Signature("m", "1", (), ())
NOW_MS = 1_800_000_000_000


def request(rows: int, sent_ms: int, arrived_ms: float) -> Request:
    return Request(b"", 1, rows, 5, 0, arrived_ms=arrived_ms, source=Source(0, 0, sent_ms))


def noted() -> Meter:
    meter = Meter()
    meter.note_admission(50, 1.0)
    meter.note_batch(
        SIGNATURE,
        [request(1, 100, 110.0), request(3, 105, 111.0)],
        taken_ms=112.0,
        started_ms=112.5,
        ended_ms=120.0,
        written_ms=121.0,
    )
    return meter


def test_meter_batch_is_counted_by_model_and_phase() -> None:
    drained = noted().drain()
    assert {path[2]: count for path, count in drained.items() if len(path) == 3} == {
        "requests": 2,
        "rows": 4,
        "batches": 1,
    }
    assert {path[2]: count for path, count in drained.items() if path[-1] == "us"} == {
        "broker": 16_000,
        "admit": 40,
        "queue": 3_000,
        "batch": 1_000,
        "session": 15_000,
        "encode": 2_000,
        TOTAL: 37_000,
    }
    assert set(drained) >= {("model", "m-1", stage, "le", "inf", "requests") for stage in (*PHASES, TOTAL)} - {
        ("model", "m-1", "merge", "le", "inf", "requests")
    }


def test_meter_split_request_is_counted_by_its_breakdown() -> None:
    meter = Meter()
    meter.note_split(SIGNATURE, 100, LatencyBreakdown(0.0, 1.0, 2.0, 4.0, 7.0, 11.0, 16.0), 22.0)
    drained = meter.drain()
    assert drained["model", "m-1", "requests"] == 1
    assert drained["model", "m-1", "rows"] == 100
    spent_us = [drained["model", "m-1", stage, "us"] for stage in (*PHASES, TOTAL)]
    assert spent_us == [1000, 1000, 2000, 3000, 4000, 5000, 6000, 22_000]


def test_meter_buckets_are_cumulative() -> None:
    drained = noted().drain()
    total = {path[4]: count for path, count in drained.items() if path[2:4] == (TOTAL, "le")}
    assert total == {"16384": 1, "32768": 2, **{str(limit): 2 for limit in LIMITS_US[10:-1]}, "inf": 2}


def test_meter_drain_resets_all_counts() -> None:
    meter = noted()
    meter.note_error("overloaded", 2)
    meter.note_error("overloaded")
    assert meter.has_more
    assert meter.drain()[("error", "overloaded", "requests")] == 3
    assert meter.drain() == {}
    assert not meter.has_more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent_ms", "arrived_ms", "spent_us"),
    [
        (NOW_MS, LONG_AGO_MS, (0, 10_000, 30_000)),  # restored
        (-1, NOW_MS, (0, 10_000, 30_000)),  # no timestamp
        (NOW_MS + 5, NOW_MS, (0, 10_000, 25_000)),  # sender's clock ahead
        (2**63 - 1, NOW_MS, (0, 10_000, 0)),
        (0, NOW_MS, (2**40, 10_000, 2**40)),  # or at 1970
        (-1, LONG_AGO_MS, (0, 2**40, 2**40)),
    ],
)
def test_meter_wrong_clock_is_bounded(sent_ms: int, arrived_ms: float, spent_us: tuple[int, int, int]) -> None:
    meter, requests = Meter(), 100_000
    meter.note_batch(
        SIGNATURE,
        [request(1, sent_ms, arrived_ms)] * requests,
        taken_ms=NOW_MS + 10,
        started_ms=NOW_MS + 10,
        ended_ms=NOW_MS + 30,
        written_ms=NOW_MS + 30,
    )
    drained = meter.drain()
    spent = tuple(drained.get(("model", "m-1", stage, "us"), 0) for stage in ("broker", "queue", TOTAL))
    assert spent == tuple(us * requests for us in spent_us)
    assert max(drained.values()) < 2**63


@pytest.mark.parametrize(
    ("sent_ms", "arrived_ms", "ahead"),
    [
        (NOW_MS + 3_600_000, NOW_MS, (1, 3_600_000)),
        (2**63 - 1, NOW_MS, (1, 2**40)),
        (NOW_MS, NOW_MS, (0, 0)),
        (NOW_MS + 9, LONG_AGO_MS, (0, 0)),  # restored
        (-1, NOW_MS, (0, 0)),
    ],
)
@pytest.mark.parametrize("alike", [1, 3])
def test_meter_clock_ahead_is_counted(sent_ms: int, arrived_ms: float, ahead: tuple[int, int], alike: int) -> None:
    meter, at_ms = Meter(), NOW_MS + 1.0
    times = {"taken_ms": at_ms, "started_ms": at_ms, "ended_ms": at_ms, "written_ms": at_ms}
    meter.note_batch(SIGNATURE, [request(1, sent_ms, arrived_ms)] * alike, **times)
    drained = meter.drain()
    assert tuple(drained.get(("clock", name), 0) // alike for name in ("ahead_requests", "ahead_ms")) == ahead


def test_meter_clock_ahead_of_split_request_is_counted() -> None:
    meter = Meter()
    for sent_ms in (7.0, 2.0):
        meter.note_split(SIGNATURE, 100, LatencyBreakdown(sent_ms, 2.0, 2.0, 4.0, 7.0, 11.0, 16.0), 22.0)
    drained = meter.drain()
    assert (drained["clock", "ahead_requests"], drained["clock", "ahead_ms"]) == (1, 5)


def test_meter_clock_behind_is_counted() -> None:
    meter = Meter()
    meter.note_behind(1_000.7)
    meter.note_behind(5.0)
    assert meter.has_more
    assert meter.drain() == {("clock", "behind_requests"): 2, ("clock", "behind_ms"): 1_005}
    assert not meter.has_more


def test_meter_counts_transfers_between_tasks() -> None:
    meter = Meter()
    for size_bytes in (100, 20):
        meter.note_claim(size_bytes)
    meter.note_large_message()
    meter.note_lost()
    assert meter.has_more
    counts = {"claims": 2, "claimed_bytes": 120, "large_messages": 1, "lost": 1}
    assert meter.drain() == {("exchange", name): count for name, count in counts.items()}
    assert not meter.has_more


@given(st.integers(-5, 2**40))
def test_bucket_of_a_time_is_the_first_that_fits(us: int) -> None:
    bucket = bucket_of(us)
    limit_us = LIMITS_US[bucket]
    assert limit_us is None or us <= limit_us
    assert bucket == 0 or us > (LIMITS_US[bucket - 1] or 0)


@given(st.lists(st.integers(1, 30_000_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_within_its_bucket(times_us: list[int], share: float) -> None:
    counts = np.zeros(len(LIMITS_US), int)
    for us in times_us:
        counts[bucket_of(us)] += 1
    found_us = percentile_us(counts.cumsum().tolist(), share)
    exact_us = float(np.quantile(times_us, share, method="inverted_cdf"))
    assert found_us / 2 <= max(exact_us, 32.0)
    assert exact_us <= max(found_us, 64.0) * 2


@pytest.mark.parametrize(("buckets", "us"), [([0] * 21, 0.0), ([0] * 20 + [5], 2.0**25), ([4] + [4] * 20, 32.0)])
def test_percentile_at_the_ends_is_a_limit(buckets: list[int], us: float) -> None:
    assert percentile_us(buckets, 0.5) == us


def test_meter_opened_operator_names_models_left_out() -> None:
    left_out = [LeftOut("ocr", "2", "näive: cannot load “x”.y, z"), LeftOut("long", "", "r" * 5000)]
    meter = Meter()
    meter.note_opened(left_out)
    drained = meter.drain()
    assert drained.pop(("models", "opened")) == 1
    tokens = [path[1] for path in drained]
    assert [read_left_out(token) for token in tokens] == [left_out[0], LeftOut("long", "", "r" * 500)]
    # Flink replaces other characters in the name of a group, and limits a query to 4 KiB.
    assert all(set(token) <= set(string.ascii_letters + string.digits + "-_") for token in tokens)
    assert max(map(len, tokens)) < 1000
    assert not meter.has_more


@pytest.mark.parametrize("token", ["", "!", "AAAA", "e30"])
def test_read_left_out_of_other_text_is_refused(token: str) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        read_left_out(token)
