"""Short runs of split requests: the state stays small, and a planted leak is found."""

import pytest

from tests.chaos.endurance import EnduranceResult, EnduranceSlice, Leak, run


@pytest.mark.slow
@pytest.mark.parametrize(("leak", "is_flat"), [("none", True), ("windows", False)])
def test_endurance_planted_leak_is_the_only_growth(leak: Leak, *, is_flat: bool) -> None:
    result = run(8_000, slices=4, leak=leak, tell=False)
    assert result.is_flat() == is_flat, result.growth()
    assert [each.answers for each in result.slices] == [each.requests for each in result.slices]
    # Something was stored at all.
    assert all(each.windows > 10 for each in result.slices)


@pytest.mark.parametrize(
    ("grows", "by", "is_flat"),
    [("memory_mb", 0.1, True), ("memory_mb", 10.0, False), ("checkpoint_bytes", 1, True), ("timers", 10, False)],
)
def test_endurance_growth_over_the_limit_is_not_flat(grows: str, by: float, *, is_flat: bool) -> None:
    flat = {"checkpoint_bytes": 1000, "windows": 50, "timers": 50, "memory_mb": 80.0}
    slices = [
        EnduranceSlice(requests=n * 1000, answers=n * 1000, seconds=1.0, **flat | {grows: flat[grows] + n * by})  # type: ignore[arg-type]
        for n in range(1, 11)
    ]
    assert EnduranceResult(slices=slices).is_flat() is is_flat
