"""A short chaos run in each mode, of which `make recovery` runs one; `make chaos` runs the long ones."""

from pathlib import Path

import pytest

from tests.chaos.chaos_slice import read_suite, run_slice, summary_of


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "mode", [pytest.param("process", marks=pytest.mark.recovery), pytest.param("thread", marks=pytest.mark.long)]
)
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
