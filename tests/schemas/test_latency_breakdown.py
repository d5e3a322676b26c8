"""Latency breakdown: phases follow each other without a gap."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.latency_breakdown import PHASES, SUFFIX, LatencyBreakdown


@given(st.lists(st.floats(0, 10_000), min_size=8, max_size=8).map(sorted))
def test_breakdown_phases_sum_to_the_whole(stamps_ms: list[float]) -> None:
    *stamps, written_ms = [1_700_000_000_000 + stamp for stamp in stamps_ms]
    parameters = LatencyBreakdown(*stamps).to_parameters(written_ms)
    assert list(parameters) == [f"{phase}{SUFFIX}" for phase in PHASES]
    assert abs(sum(parameters.values()) - 1000 * (stamps_ms[-1] - stamps_ms[0])) <= len(PHASES)


@given(st.lists(st.floats(0, 10_000), min_size=8, max_size=8))
def test_breakdown_with_clock_skew_has_no_negative_phase(stamps_ms: list[float]) -> None:
    *stamps, written_ms = stamps_ms
    assert min(LatencyBreakdown(*stamps).to_parameters(written_ms).values()) >= 0
