from pathlib import Path

import numpy as np
import pytest

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.accounting import Moment
from bench.harness.load_run import LoadRun
from bench.harness.response_log import ResponseLog
from bench.scenarios.burst import Burst, BurstSettings
from bench.systems.registry import CONFLUENT
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

MS = 1_000_000


def offered(workload: Workload, spent_ms: list[float], deviation: float = 0.0) -> LoadRun:
    """Requests each 10 ms, answered after so many milliseconds; the last one is not answered."""
    scheduled_ns = np.arange(1, len(spent_ms) + 1, dtype=np.int64) * 10 * MS
    received_ns = (scheduled_ns + np.array(spent_ms) * MS).astype(np.int64)[:-1]
    count = len(received_ns)
    nothing = np.zeros(count, bool)
    answers = ResponseLog(
        ids=np.arange(count),
        received_ns=received_ns,
        appended_ms=received_ns // MS,
        deviation=np.full(count, deviation),
        refused=nothing,
        expired=nothing,
        stages_us=np.full((count, len(PHASES)), np.nan),
        cosine=np.ones(count),
    )
    moment = Moment(0.0, {}, 0.0, 0.0)
    return LoadRun(workload, 0, scheduled_ns, scheduled_ns, answers, moment, moment)


@pytest.fixture
def scenario(tiny_workload: Workload) -> Burst:
    return Burst(BurstSettings(calm_seconds=1, burst_seconds=1), tiny_workload, tiny_workload)


def test_burst_each_priority_has_its_deadline(scenario: Burst, tiny_workload: Workload) -> None:
    spent_ms = [50.0, 300.0, 1000.0] * 100
    hits = scenario._note(offered(tiny_workload, spent_ms), CONFLUENT, 0, 70).hit_share
    assert hits == {"1": 1.0, "5": 1.0, "9": 0.99}, "the last request of all, of priority 9, had no answer"
    hits = scenario._note(offered(tiny_workload, [150.0, 600.0, 1000.0] * 100), CONFLUENT, 0, 70).hit_share
    assert hits == {"1": 0.0, "5": 0.0, "9": 0.99}


def test_burst_wrong_answer_in_time_is_not_a_hit(scenario: Burst, tiny_workload: Workload) -> None:
    run = scenario._note(offered(tiny_workload, [10.0] * 300, deviation=0.5), CONFLUENT, 0, 70)
    assert set(run.hit_share.values()) == {0.0}


def test_burst_recovery_starts_at_its_end(scenario: Burst, tiny_workload: Workload) -> None:
    spent_ms = [10.0] * 100 + [500.0] * 100 + [400.0] * 150 + [12.0] * 50
    assert scenario._note(offered(tiny_workload, spent_ms), CONFLUENT, 0, 70).recovery_s == 1.5


def test_burst_result_is_drawn(scenario: Burst, tiny_workload: Workload, tmp_path: Path) -> None:
    run = scenario._note(offered(tiny_workload, [10.0] * 300), CONFLUENT, 0, 70)
    assert "<svg" in drawn(conclude(scenario, [run]), tmp_path)
