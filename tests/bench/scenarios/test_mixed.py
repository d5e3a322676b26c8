"""The `mixed` scenario: what a load's requests got, and the urgent ones' limit."""

from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np
import pytest

from anabranch.schemas.latency_breakdown import PHASES
from bench.harness.accounting import Moment
from bench.harness.load_run import LoadRun
from bench.harness.response_log import ResponseLog
from bench.scenarios.mixed import ALL, QUICK, SATURATED, Mixed, MixedRun, MixedSettings
from bench.systems.registry import anabranch
from bench.workloads.mixture import Mixture
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

MS = 1_000_000
OURS = anabranch("thread")


def mixture() -> Mixture:
    """Of four requests, two go to each workload; the first two are urgent."""
    workloads = [
        Workload(name, [np.zeros(1, np.uint8)], [np.zeros(1, np.float32)], tolerance=tolerance)
        for name, tolerance in ((QUICK[0], 1e-5), ("resnet50", 1e-2))
    ]
    both = Workload("mixture", [np.zeros(1, np.uint8)] * 4, [np.zeros(1, np.float32)] * 4, tolerance=1e-2)
    return Mixture(both, workloads, np.array([0, 1, 0, 1]), np.array([1, 1, 9, 9]))


def offered(deviation: list[float], refused: Collection[int] = ()) -> LoadRun:
    """Requests each 10 ms, from the fourth id on; request n is answered after n + 1 ms, the first one twice."""
    count = len(deviation)
    scheduled_ns = np.arange(1, count + 1, dtype=np.int64) * 10 * MS
    order = [*range(count), 0]
    ids = np.array(order) + 4
    received_ns = np.array([scheduled_ns[place] + (place + 1) * MS for place in order])
    answers = ResponseLog(
        ids=ids,
        received_ns=received_ns,
        appended_ms=received_ns // MS,
        deviation=np.array([np.nan if place in refused else deviation[place] for place in order]),
        refused=np.array([place in refused for place in order]),
        expired=np.zeros(len(order), bool),
        stages_us=np.full((len(order), len(PHASES)), np.nan),
        cosine=np.ones(len(order)),
    )
    moment = Moment(0.0, {}, 0.0, 0.0)
    return LoadRun(mixture().workload, 4, scheduled_ns, scheduled_ns, answers, moment, moment)


@pytest.fixture
def scenario() -> Mixed:
    return Mixed(MixedSettings(), mixture())


def runs_of(scenario: Mixed, load: LoadRun) -> dict[tuple[str, int], MixedRun]:
    return {(run.workload, run.priority): run for run in scenario.runs_of(load, OURS, SATURATED, 0)}


def test_mixed_requests_count_for_their_workload(scenario: Mixed) -> None:
    found = runs_of(scenario, offered([0.0] * 8, refused={3, 7}))
    everyone = found[ALL, 0]
    assert (everyone.tally.requests, everyone.tally.refused, everyone.tally.repeated) == (8, 2, 1)
    assert everyone.served_share == 0.75
    urgent = found[QUICK[0], 1]
    assert (urgent.tally.requests, urgent.tally.repeated, urgent.p50_ms) == (2, 1, 3.0)
    late = found["resnet50", 9]
    assert (late.tally.refused, late.served_share, late.p99_ms, late.tally.is_clean) == (2, 0.0, 0.0, True)
    assert found["resnet50", 5].tally.requests == 0


def test_mixed_each_workload_has_its_own_tolerance(scenario: Mixed) -> None:
    found = runs_of(scenario, offered([5e-3] * 8))
    assert (found[QUICK[0], 1].tally.wrong, found["resnet50", 1].tally.wrong) == (2, 0)


@pytest.mark.parametrize(("p99_ms", "share", "met"), [(99.0, 1.0, True), (101.0, 1.0, False), (0.0, 0.0, False)])
def test_mixed_urgent_quick_requests_have_a_limit(
    scenario: Mixed, tmp_path: Path, p99_ms: float, share: float, met: bool
) -> None:
    load = offered([0.0] * 8)
    runs = [run for run in scenario.runs_of(load, OURS, SATURATED, 0) if run.tally.is_clean or run.priority == 1]
    runs = [
        msgspec.structs.replace(
            run,
            p99_ms=p99_ms,
            served_share=share,
            tally=msgspec.structs.replace(run.tally, repeated=0),
        )
        for run in runs
    ]
    result = conclude(scenario, runs)
    assert [(target.workload, target.met) for target in result.targets] == [(QUICK[0], met)]
    if p99_ms:
        assert "1.5 x capacity" in drawn(result, tmp_path)
