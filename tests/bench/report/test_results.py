from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.__main__ import RESULTS
from bench.harness.analysis.latency_phases import ALL_STAGES
from bench.harness.analysis.measures import Line, Percentiles, Spread, Tally
from bench.harness.preloaded import ThroughputRun
from bench.harness.rate_search import SearchSettings
from bench.harness.settings import Settings
from bench.report import tables
from bench.report.results import ScenarioSummary, keys_of, ratio_of, rows_of
from bench.report.summary import RAW, read_notes, read_summary, write_result, write_summary
from bench.scenarios.base import all_scenarios
from bench.scenarios.efficiency import Efficiency
from bench.scenarios.latency import Latency, LatencyRun, LatencySettings
from bench.scenarios.ledger import ExplainedLoad, Ledger, LedgerRun
from bench.scenarios.memory import Memory, MemoryRun, MemorySettings
from bench.scenarios.overload import Overload, OverloadRun, OverloadSettings, by_fifth, growth_of
from bench.scenarios.sustainable import COMMON, OVER_NO_QUEUE, SUSTAINABLE, RateRun, Sustainable, SustainableCase
from bench.scenarios.throughput import Throughput
from bench.systems.registry import CONFLUENT, anabranch
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

CLEAN = Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0)
LOST_ONE = msgspec.structs.replace(CLEAN, answered=9, missing=1)
COSTS = {"broker java": 0.1, "system java": 0.3}


def throughput_run(system: str, repeat: int, rate: float, tally: Tally = CLEAN) -> ThroughputRun:
    return ThroughputRun(
        system=system,
        workload="tiny",
        repeat=repeat,
        tally=tally,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        warm_up_requests=5,
        rate_per_s=rate,
    )


def latency_run(system: str, workload: str, p50_ms: float, tally: Tally = CLEAN) -> LatencyRun:
    percentiles = Percentiles(p50_ms, p50_ms, 2 * p50_ms, 3 * p50_ms, 4 * p50_ms, p50_ms)
    return LatencyRun(
        system=system,
        workload=workload,
        repeat=0,
        tally=tally,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        rate_per_s=200,
        seconds=1,
        latency=percentiles,
        append_latency=percentiles,
    )


def memory_run(system: str, slope: float) -> MemoryRun:
    return MemoryRun(
        system=system,
        workload="tiny",
        repeat=0,
        tally=CLEAN,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        idle_mb=300,
        warm_mb=700,
        peak_mb=710,
        rate_per_s=1000,
        answered=[0, 5_000, 10_000],
        resident_mb=[700, 700 + slope / 2, 700 + slope],
        line=Line(700, slope, 0.1),
    )


def overload_run(load: float, goodput_per_s: float, p99_ms: float, tally: Tally = CLEAN) -> OverloadRun:
    return OverloadRun(
        system=f"anabranch, thread, 1 task, {load:g} x peak",
        workload="tiny",
        repeat=0,
        tally=tally,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        load=load,
        seconds=1,
        offered_per_s=100 * load,
        peak_per_s=100,
        goodput_per_s=goodput_per_s,
        goodput_by_fifth_per_s=[0.0, *[goodput_per_s] * 3, 2 * goodput_per_s],
        refused=3,
        served_share={"1": 1.0, "5": 0.5, "9": 0.0},
        p50_ms={"1": 5.0, "5": 6.0, "9": 0.0},
        p99_ms={"1": p99_ms, "5": 60.0, "9": 0.0},
        drain_s=0.5,
        peak_mb=700,
        resident_mb=[700],
    )


def rate_run(system: str, load: str, rate_per_s: float, p50_ms: float, tally: Tally = CLEAN) -> RateRun:
    return RateRun(
        system=system,
        workload="tiny",
        repeat=0,
        tally=tally,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        load=load,
        rate_per_s=rate_per_s,
        latency=Percentiles(p50_ms, p50_ms, 2 * p50_ms, 3 * p50_ms, 4 * p50_ms, p50_ms),
        lag=0.0,
        generator_p99_ms=0.1,
        probes=[],
    )


def ledger_run(workload: str, latency_ms: float) -> LedgerRun:
    return LedgerRun(
        system="anabranch, thread, 1 task",
        workload=workload,
        repeat=0,
        tally=CLEAN,
        core_s_per_1000=COSTS,
        other_cores=0.1,
        rate_per_s=200,
        latency=Percentiles(1, 1, 1, 1, 1, latency_ms),
        stages_ms=dict.fromkeys(ALL_STAGES, 0.5),
    )


def test_ratio_is_taken_round_by_round() -> None:
    runs = [throughput_run("a", 0, 100), throughput_run("b", 0, 50), throughput_run("a", 1, 30)]
    runs += [throughput_run("b", 1, 30), throughput_run("a", 2, 90)]
    ratio = ratio_of(runs, [run.rate_per_s for run in runs], "a", "b", "tiny", "rate_per_s")
    assert ratio is not None
    assert ratio.ratio == Spread(1.5, 1, 2)
    assert ratio_of(runs, [run.rate_per_s for run in runs], "a", "c", "tiny", "rate_per_s") is None


def test_target_lost_answer_is_missed() -> None:
    runs = [latency_run("anabranch", "tiny", 5, LOST_ONE)]
    (row,) = rows_of(runs, {"p50_ms": [5]}, keys_of(runs))
    assert row.not_answered_right == 1
    assert not row.target("p50_ms", "<=", 8).met


def test_latency_limits_include_the_models_time(tmp_path: Path, tiny_workload: Workload) -> None:
    scenario = Latency(LatencySettings(), tiny_workload, tiny_workload, tmp_path)
    scenario._model_ms = {"tiny": 2.5}
    result = conclude(
        scenario,
        [
            latency_run("anabranch, thread, 1 task", "tiny", 6),
            latency_run("naive PyFlink map, thread, 1 task", "tiny", 3),
        ],
    )
    found = {(target.metric, target.limit): target.met for target in result.targets}
    assert found == {
        ("p50_ms", 6.5): True,
        ("p99_ms", 22.5): True,
        ("p99_ms", 60): True,
    }
    assert {ratio.ratio.median for ratio in result.ratios} == {2.0}


def test_throughput_targets_are_ratios_to_peers(tmp_path: Path, tiny_workload: Workload) -> None:
    result = conclude(
        Throughput(Settings(), tiny_workload, tmp_path),
        [
            throughput_run("anabranch, thread, 1 task", 0, 120),
            throughput_run("naive PyFlink map, thread, 1 task", 0, 100),
            throughput_run("confluent-kafka worker", 0, 240),
        ],
    )
    assert [(target.value, target.limit, target.met) for target in result.targets] == [
        (1.2, 1.5, False),
        (0.5, 0.5, True),
    ]
    assert {ratio.peer: ratio.ratio.median for ratio in result.ratios} == {
        "naive PyFlink map, thread, 1 task": 1.2,
        "confluent-kafka worker": 0.5,
    }


def test_scenarios_chosen_workloads_alone_are_measured(tmp_path: Path, tiny_workload: Workload) -> None:
    other = replace(tiny_workload, name="other")
    settings = SearchSettings(workloads=("other",), repeats=1)
    steps = Efficiency(settings, tiny_workload, other, tiny_workload, tiny_workload, tmp_path).steps()
    assert all("other" in step.label for step in steps)
    cases = [SustainableCase(workload, 10, 1, (CONFLUENT,)) for workload in (tiny_workload, other)]
    assert len(Sustainable(settings, cases, tmp_path)._cases) == 1


def test_efficiency_no_attainable_rate_has_no_target(tmp_path: Path, tiny_workload: Workload) -> None:
    scenario = Efficiency(Settings(), tiny_workload, tiny_workload, tiny_workload, tiny_workload, tmp_path)
    result = conclude(scenario, [throughput_run("anabranch, thread, 1 task", 0, 120)])
    assert result.targets == []
    assert list(result.rows[0].metrics) == ["rate_per_s"]


def test_efficiency_is_a_share_of_the_attainable_rate(tmp_path: Path, tiny_workload: Workload) -> None:
    magika = replace(tiny_workload, name="magika")
    scenario = Efficiency(Settings(), tiny_workload, magika, tiny_workload, tiny_workload, tmp_path)
    scenario._attainable = {"magika": 150.0}
    ours = throughput_run("anabranch, thread, 1 task", 0, 135)
    result = conclude(scenario, [msgspec.structs.replace(ours, workload="magika")])
    assert [(target.value, target.limit, target.met) for target in result.targets] == [(0.9, 0.8, True)]
    assert "<svg" in drawn(result, tmp_path)


@pytest.mark.parametrize(("half_ms", "tally", "met"), [(1.9, CLEAN, True), (2.1, CLEAN, False), (1.9, LOST_ONE, False)])
def test_sustainable_tail_at_half_rate_is_a_target(
    tmp_path: Path, tiny_workload: Workload, half_ms: float, tally: Tally, met: bool
) -> None:
    ours, peer = anabranch("thread").name, CONFLUENT.name
    case = SustainableCase(tiny_workload, 100, 10, (anabranch("thread"), CONFLUENT))
    runs = [
        rate_run(ours, SUSTAINABLE, 1000, 9),
        rate_run(ours, "no queue", 50, 2),
        rate_run(ours, "50 %", 500, half_ms, tally),
        rate_run(ours, COMMON, 10, 2),
        rate_run(peer, SUSTAINABLE, 2000, 9),
        rate_run(peer, COMMON, 10, 1),
    ]
    result = conclude(Sustainable(SearchSettings(), [case], tmp_path), runs)
    assert [(target.metric, target.met) for target in result.targets] == [(OVER_NO_QUEUE, met)]
    assert {ratio.metric: ratio.ratio.median for ratio in result.ratios} == {
        "sustainable rate": 0.5,
        "p99 at the common rate": 2.0,
    }
    loads = [f"{ours}, {load}" for load in (SUSTAINABLE, "no queue", "50 %", COMMON)]
    assert [row.system for row in result.rows] == [*loads, f"{peer}, {SUSTAINABLE}", f"{peer}, {COMMON}"]
    assert "<svg" in drawn(result, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("write_ms", "met"), [(0.5, True), (-0.9, True), (-1.1, False)])
def test_ledger_negative_stage_misses_the_target(
    tmp_path: Path, tiny_workload: Workload, write_ms: float, met: bool
) -> None:
    scenario, run = Ledger(Settings(), [ExplainedLoad(tiny_workload, 200, 10)]), ledger_run("tiny", 5)
    result = conclude(scenario, [msgspec.structs.replace(run, stages_ms={**run.stages_ms, "write": write_ms})])
    assert [target.met for target in result.targets] == [met]
    assert result.rows[0].metrics["explained"].median == pytest.approx(0.8)
    assert "<svg" in drawn(result, tmp_path)


def test_summary_missed_target_has_breakdown_and_note(tmp_path: Path, tiny_workload: Workload) -> None:
    notes = {"tiny": {"p50_ms": "Tried hard."}}
    ledger = conclude(Ledger(Settings(), [ExplainedLoad(tiny_workload, 200, 10)]), [ledger_run("tiny", 4.5)])
    write_result(tmp_path, ledger, notes)
    runs = [latency_run("anabranch, thread, 1 task", "tiny", 5)]
    summaries = write_result(
        tmp_path, conclude(Latency(LatencySettings(), tiny_workload, tiny_workload, tmp_path), runs), notes
    )
    assert {summary.scenario: summary for summary in summaries} == read_summary(tmp_path)
    targets = [target for summary in summaries for target in summary.targets]
    missed = [target for target in targets if not target.met]
    assert {target.metric for target in missed} == {"p50_ms"}
    assert all(target.note == "Tried hard." for target in missed)
    assert all(target.breakdown == dict.fromkeys(ALL_STAGES, 0.5) for target in missed)
    assert not any(target.note or target.breakdown for target in targets if target.met)
    tables.write_readme(tmp_path, summaries)
    assert "Tried hard." in (tmp_path / "README.md").read_text()
    tables.write_readme(tmp_path, write_summary(tmp_path, read_summary(tmp_path), {}))
    assert "no note explains this" in (tmp_path / "README.md").read_text()


def test_committed_notes_are_readable() -> None:
    assert isinstance(read_notes(), dict)


def test_summary_second_scenario_keeps_the_first(tmp_path: Path, tiny_workload: Workload) -> None:
    first = conclude(Memory(MemorySettings(), tiny_workload), [memory_run("anabranch, thread, 1 task", 0.2)])
    write_result(tmp_path, first, {})
    second = conclude(Throughput(Settings(), tiny_workload, tmp_path), [throughput_run("anabranch", 0, 9)])
    for _ in range(2):
        write_result(tmp_path, second, {})
        found = read_summary(tmp_path)
        assert list(found) == ["memory", "throughput"]
        assert found["memory"] == first.summary()
        assert all(target.met for target in found["memory"].targets)


def test_committed_summary_accounts_for_every_scenario() -> None:
    found = read_summary(RESULTS)
    assert set(found) == set(all_scenarios())
    for summary in found.values():
        assert summary.rows
        assert summary.command.startswith("python -m bench --only")
        assert min(len(summary.commit), len(summary.versions), len(summary.machine)) > 0
        for target in summary.targets:
            assert target.met or target.note, f"{summary.scenario}: {target.workload}, {target.metric}"
    assert list(RESULTS.glob("*.json")) == [RESULTS / "summary.json"]


def test_committed_readme_is_generated_from_the_summary(tmp_path: Path) -> None:
    for picture in RESULTS.glob("*.svg"):
        (tmp_path / picture.name).touch()
    tables.write_readme(tmp_path, list(read_summary(RESULTS).values()))
    assert (tmp_path / "README.md").read_text() == (RESULTS / "README.md").read_text()


@pytest.mark.parametrize(("slope", "met"), [(0.2, True), (5.0, False)])
def test_memory_growth_misses_the_target(tiny_workload: Workload, slope: float, met: bool) -> None:
    result = conclude(Memory(MemorySettings(), tiny_workload), [memory_run("anabranch, thread, 1 task", slope)])
    assert [target.met for target in result.targets] == [met]


@pytest.mark.parametrize(
    ("goodput_per_s", "p99_ms", "tally", "met"),
    [(95, 19, CLEAN, [True] * 4), (85, 21, CLEAN, [False, False, True, True]), (95, 19, LOST_ONE, [False] * 4)],
)
def test_overload_goodput_and_urgent_tail_are_targets(
    tiny_workload: Workload, goodput_per_s: float, p99_ms: float, tally: Tally, met: list[bool]
) -> None:
    runs = [overload_run(0.25, 25, 10), overload_run(2, 95, p99_ms, tally), overload_run(3, goodput_per_s, 50, tally)]
    result = conclude(Overload(OverloadSettings(), tiny_workload), runs)
    assert [target.met for target in result.targets] == met


def test_overload_unserved_urgent_misses_the_target(tiny_workload: Workload) -> None:
    refused = msgspec.structs.replace(
        overload_run(2, 95, 0.0), served_share={"1": 0.0, "5": 0.5, "9": 0.9}, p99_ms={"1": 0.0, "5": 60.0, "9": 70.0}
    )
    result = conclude(Overload(OverloadSettings(), tiny_workload), [overload_run(0.25, 25, 10), refused])
    assert [target.met for target in result.targets] == [False]


def test_growth_rising_samples_is_above_one() -> None:
    assert growth_of([100, 300, 500, 500, 500, 500, 505, 505, 505, 510]) == pytest.approx(1.02)
    assert growth_of([100, 300, 500, 500, 600, 700, 800, 900, 1000, 1000]) == pytest.approx(2)


def test_goodput_by_fifth_shows_the_fall() -> None:
    answered_ns = np.array([0.5, 1.5, 2.5, 3.5, 3.6, 9.9]) * 1e9
    assert by_fifth(answered_ns.astype(np.int64), span_s=10) == [1.0, 1.5, 0.0, 0.0, 0.5]


@pytest.mark.slow
def test_result_round_trip_makes_readme_and_plot(tmp_path: Path, tiny_workload: Workload) -> None:
    names = ("anabranch, thread, 1 task", "naive PyFlink map, thread, 1 task")
    results = [
        conclude(
            Latency(LatencySettings(), tiny_workload, tiny_workload, tmp_path),
            [latency_run(name, "tiny", 5) for name in names],
        ),
        conclude(Throughput(Settings(), tiny_workload, tmp_path), [throughput_run(name, 0, 9) for name in names]),
        conclude(Memory(MemorySettings(), tiny_workload), [memory_run(name, 0.3) for name in names]),
        conclude(Overload(OverloadSettings(), tiny_workload), [overload_run(load, 90, 20) for load in (0.25, 2, 3)]),
    ]
    for result in results:
        summaries = write_result(tmp_path, result, {})
        raw = tmp_path / RAW / f"{result.scenario}.json"
        runs = msgspec.json.encode(msgspec.json.decode(raw.read_bytes())["runs"])
        assert msgspec.json.decode(runs, type=list[type(result.runs[0])]) == result.runs  # type: ignore[misc]
        assert msgspec.json.decode(raw.read_bytes(), type=ScenarioSummary) == result.summary()
        assert "<svg" in drawn(result, tmp_path)
    tables.write_readme(tmp_path, summaries)
    readme = (tmp_path / "README.md").read_text()
    for name in ("latency.svg", "throughput.svg", "memory.svg", "overload.svg", "python -m bench"):
        assert name in readme
