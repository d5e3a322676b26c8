import numpy as np
import pytest

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.accounting import Moment
from bench.harness.analysis.latency_phases import ALL_STAGES, stages_ms
from bench.harness.load_run import LoadRun
from bench.harness.response_log import ResponseLog
from bench.workloads.workload import Workload

MS = 1_000_000
#: The first request was sent 0.25 ms after a whole millisecond, which is what its record says.
SCHEDULED_NS = np.array([1_000 * MS, 1_010 * MS], np.int64)
SENT_NS = SCHEDULED_NS + np.array([MS // 4, 0], np.int64)


def offered(workload: Workload, inside_us: list[list[float]], spent_ms: list[float]) -> LoadRun:
    nothing = np.zeros(2, bool)
    received_ns = SCHEDULED_NS + (np.array(spent_ms) * MS).astype(np.int64)
    answers = ResponseLog(
        ids=np.arange(2),
        received_ns=received_ns,
        appended_ms=received_ns // MS - 2,
        deviation=np.zeros(2),
        refused=nothing,
        expired=nothing,
        stages_us=np.array(inside_us, np.float64),
        cosine=np.ones(2),
    )
    moment = Moment(0.0, {}, 0.0, 0.0)
    return LoadRun(workload, 0, SCHEDULED_NS, SENT_NS, answers, moment, moment)


def test_stages_span_scheduled_time_to_reader(tiny_workload: Workload) -> None:
    found = stages_ms(offered(tiny_workload, [[1250, 100, 0, 0, 500, 0, 50], [1000, 100, 0, 0, 500, 0, 50]], [4, 4]))
    assert list(found) == list(ALL_STAGES)
    assert sum(found.values()) == pytest.approx(4, abs=1e-3)
    assert (found["send"], found["broker"], found["session"]) == (0.125, 1.0, 0.5)
    assert found["write"] == pytest.approx((2.5 - 1.9 + 2.5 - 1.65) / 2, abs=1e-3)
    assert found["read"] == pytest.approx(4 - 2.5, abs=1e-3)


def test_stages_stamp_before_write_is_negative(tiny_workload: Workload) -> None:
    found = stages_ms(offered(tiny_workload, [[5000, 0, 0, 0, 0, 0, 0]] * 2, [4, 4]))
    assert found["write"] == pytest.approx(2.5 - 5)


def test_stages_answer_without_breakdown_is_left_out(tiny_workload: Workload) -> None:
    found = stages_ms(offered(tiny_workload, [[np.nan] * len(PHASES), [1000, 0, 0, 0, 0, 0, 0]], [4, 3]))
    assert (found["send"], found["broker"], found["write"], found["read"]) == (0, 1, 0.5, 1.5)
