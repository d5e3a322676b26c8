"""Rates and percentiles of `anabranch top`, from counters that only grow."""

import pytest

from anabranch.jobs.activity import ClockSkew, activity, wanted, wanted_clocks
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.requests import Request
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.records import Source
from anabranch.schemas.signatures import Signature
from anabranch.stack.flink.rest import batched_by_length


def counters(times: int, errors: int = 0, operator: str = "serve") -> dict[str, float]:
    """Counters as Flink shows them, after `times` batches of two requests of 20 ms."""
    meter = Meter()
    for _ in range(times):
        requests = [Request(b"", 1, rows, 5, 0, arrived_ms=4.0, source=Source(0, 0, 1)) for rows in (1, 3)]
        meter.note_batch(
            Signature("m", "1", (), ()), requests, taken_ms=6.0, started_ms=7.0, ended_ms=20.0, written_ms=21.0
        )
    for _ in range(errors):
        meter.note_error("overloaded")
    return {".".join((operator, "anabranch", *path)): float(count) for path, count in meter.drain().items()}


def test_activity_two_readings_give_rates_between_them() -> None:
    seen = activity(counters(10), counters(30, errors=4), 4.0)
    [model] = seen.models
    assert (model.model, model.requests_per_s, model.rows_per_s, model.batch_rows) == ("m-1", 10.0, 20.0, 4.0)
    assert 16.384 < model.p50_ms < model.p99_ms < 32.768
    spent_ms = {"broker": 3.0, "queue": 2.0, "batch": 1.0, "session": 13.0, "encode": 1.0}
    assert model.stage_ms == {stage: spent_ms.get(stage, 0.0) for stage in PHASES}
    assert seen.errors_per_s == {"overloaded": 1.0}


def test_activity_several_operators_are_summed() -> None:
    both = counters(10) | counters(5, operator="aggregate.with.dots")
    assert activity({}, both, 1.0).models[0].requests_per_s == 30


def test_activity_idle_model_or_restarted_job_is_not_shown() -> None:
    assert activity(counters(10), counters(10), 1.0).models == []
    assert activity(counters(10), counters(2), 1.0).models == []


def test_wanted_metrics_suffice_for_activity() -> None:
    names = [*counters(3, errors=1), "serve.numRecordsIn", "Status.JVM.CPU.Load"]
    chosen = wanted(names)
    assert activity({}, {name: counters(3, errors=1)[name] for name in chosen}, 1.0) == activity(
        {}, counters(3, errors=1), 1.0
    )
    assert len(chosen) < len(names) / 2


@pytest.mark.parametrize(("limit", "lengths"), [(1, [1, 1, 1]), (7, [2, 1]), (100, [3])])
def test_batched_by_length_names_fit_the_limit(limit: int, lengths: list[int]) -> None:
    assert [len(some) for some in batched_by_length(["aaa", "bbb", "ccc"], limit)] == lengths
    assert list(batched_by_length([], limit)) == []


def test_activity_shows_skew_of_clocks_on_both_sides() -> None:
    names = ("ahead_requests", "ahead_ms", "behind_requests", "behind_ms")
    before, after = (
        {f"serve.anabranch.clock.{name}": times * (500.0 if "ms" in name else 1.0) for name in names}
        for times in (2, 6)
    )
    assert activity(before, after, 2.0).clocks == [ClockSkew("ahead", 4, 500), ClockSkew("behind", 4, 500)]
    assert activity(after, after, 2.0).clocks == []
    assert "a sender's clock is ahead" in ClockSkew("ahead", 4, 500).line
    assert wanted_clocks([*after, "serve.anabranch.models.opened"]) == [*after]
