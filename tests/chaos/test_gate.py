"""A short chaos run in each mode, of which `make recovery` runs one; `make chaos` runs the long ones."""

from pathlib import Path

import pytest

from tests.chaos import events
from tests.chaos.chaos_slice import read_suite, run_slice, summary_of

MODES = [pytest.param("process", marks=pytest.mark.recovery), pytest.param("thread", marks=pytest.mark.long)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["avro"])
def test_events_through_kills_and_a_rescale_come_once(tmp_path: Path, name: str, mode: str) -> None:
    result = events.run(name, mode, 6_000, 150.0, tmp_path, print)
    assert result.verdict.is_clean, result.verdict
    assert (len(result.faults), result.verdict.malformed) == (3, 120)
    assert result.restored >= 2, "a kill hit nothing"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", MODES)
def test_short_chaos_run_breaks_no_guarantee(tmp_path: Path, mode: str) -> None:
    plan = read_suite()[f"gate-{mode}"]
    result = run_slice(f"gate-{mode}", plan, tmp_path / "stack")
    assert result.is_clean, summary_of(result)
    assert [fault.kind for fault in result.faults if fault.missed] == []
    assert len(result.faults) == len(plan.faults) >= 4
    kinds = result.verdict.by_kind
    assert kinds.keys() == {"small", "double", "steps", "halfway", "poison"}
    assert min(kinds.values()) > 50
    assert result.verdict.ordered > 100
