"""The ledger: stages follow each other without a gap."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.latency_breakdown import STAGES, SUFFIX, LatencyBreakdown


@given(st.lists(st.floats(0, 10_000), min_size=8, max_size=8).map(sorted))
def test_stages_sum_to_the_whole(stamps_ms: list[float]) -> None:
    *stamps, written_ms = [1_700_000_000_000 + stamp for stamp in stamps_ms]
    parameters = LatencyBreakdown(*stamps).to_parameters(written_ms)
    assert list(parameters) == [f"{stage}{SUFFIX}" for stage in STAGES]
    assert abs(sum(parameters.values()) - 1000 * (stamps_ms[-1] - stamps_ms[0])) <= len(STAGES)


@given(st.lists(st.floats(0, 10_000), min_size=8, max_size=8))
def test_no_stage_takes_less_than_nothing(stamps_ms: list[float]) -> None:
    *stamps, written_ms = stamps_ms
    assert min(LatencyBreakdown(*stamps).to_parameters(written_ms).values()) >= 0
