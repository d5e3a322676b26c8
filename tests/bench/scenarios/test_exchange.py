"""The exchange scenario: what follows from what a reader saw."""

import pytest

from bench.harness.analysis.measures import Spread
from bench.harness.messages import MESSAGES, SHARED_MEMORY, TransportLog
from bench.harness.settings import Settings
from bench.report.results import Ratio
from bench.scenarios.exchange import KB, MB, SIZES, Exchange, crossover, label_of, phases_of, run_of

SIZE_OF = {label_of(size): size for size in SIZES}


def test_exchange_phases_cover_sizes_and_transports() -> None:
    phases = phases_of(repeats=2)
    bursts, spaced = phases[::2], phases[1::2]
    assert len(bursts) == len(spaced) == 3 * len(SIZES) * 2
    for burst, paced in zip(bursts, spaced, strict=True):
        assert (burst.transport, burst.size_bytes, burst.repeat) == (paced.transport, paced.size_bytes, paced.repeat)
        assert burst.interval_s == 0 < paced.interval_s
        assert burst.count >= 8
    assert [phase.transport for phase in bursts[:4]] == [MESSAGES, SHARED_MEMORY] * 2
    assert {phase.repeat for phase in phases} == {-1, 0, 1}


def test_exchange_run_joins_burst_and_paced_records() -> None:
    [phase, *_] = [phase for phase in phases_of(1) if phase.size_bytes == MB and phase.transport == SHARED_MEMORY]
    burst = TransportLog(started_ms=10_000.0, ended_ms=11_500.0, spent_ms=[900.0, 1000.0, 1100.0], claims=2)
    paced = TransportLog(spent_ms=[1.0, 3.0], claims=2, wrong=1)
    run = run_of(phase, burst, paced, 0.5)
    assert (run.workload, run.mb_per_s, run.latency.p50_ms, run.claimed_share) == ("1 MB", 2.0, 2.0, 0.8)
    assert (run.tally.answered, run.tally.wrong, run.tally.missing) == (5, 1, phase.count + 15 - 5)
    rows = Exchange(Settings()).conclude([run]).rows
    assert rows[0].not_answered_right == phase.count + 15 - 5 + 1


@pytest.mark.parametrize(
    ("medians", "found"),
    [
        ([0.5, 0.9, 1.1, 2.0], MB),
        ([0.5, 1.1, 0.9, 2.0], 4 * MB),
        ([2.0, 2.0, 2.0, 2.0], 4 * KB),
        ([2.0, 2.0, 2.0, 0.5], None),
    ],
)
def test_crossover_is_the_first_size_that_stays_better(medians: list[float], found: int | None) -> None:
    names = ["4 KB", "256 KB", "1 MB", "4 MB"]
    for metric, values in (("mb_per_s", medians), ("p50_ms", [1 / median for median in medians])):
        ratios = [
            Ratio(
                system=SHARED_MEMORY,
                peer=MESSAGES,
                workload=name,
                metric=metric,
                ratio=Spread(median=value, low=value, high=value),
            )
            for name, value in zip(names, values, strict=True)
        ]
        assert crossover(ratios[::-1], SIZE_OF, metric) == found
