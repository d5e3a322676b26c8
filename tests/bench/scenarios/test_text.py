"""The conclusions of `text`."""

from pathlib import Path

import pytest

from bench.harness.analysis.measures import Percentiles, Tally
from bench.report.results import Run
from bench.scenarios.text import AT_ONCE, HALF, LOOP, NO_QUEUE, NOT_PADDED, TAIL, Text, TextRun, TextSettings
from bench.systems.registry import MLSERVER, anabranch
from bench.workloads.workload import Workload
from tests.bench.concluding import conclude, drawn

OURS = anabranch("thread").name


def run(system: str, rate: float, load: str = AT_ONCE, p99_ms: float = 1.0, wrong: int = 0, repeat: int = 0) -> TextRun:
    return TextRun(
        system=system,
        workload="tiny",
        repeat=repeat,
        tally=Tally(requests=9, answered=9, missing=0, wrong=wrong, repeated=0, deviation=0.25, cosine=0.98),
        core_s_per_1000={},
        other_cores=0.0,
        load=load,
        rate_per_s=rate,
        latency=Percentiles(1.0, 1.0, 1.0, p99_ms, p99_ms, 1.0),
    )


def scenario(tiny: Workload, folder: Path) -> Text:
    return Text("text", TextSettings(repeats=2), tiny, tiny, folder, "It is tiny.")


def rounds(wrong: int = 0) -> list[Run]:
    runs: list[Run] = []
    for repeat, rate in enumerate((90.0, 100.0)):
        runs += [run(LOOP, rate / 0.9, repeat=repeat), run(OURS, rate, wrong=wrong, repeat=repeat)]
        runs += [run(OURS + NOT_PADDED, 60.0, repeat=repeat), run(MLSERVER.name, rate / 2, repeat=repeat)]
        runs += [run(f"{OURS}, {NO_QUEUE}", 10.0, NO_QUEUE, 20.0, repeat=repeat)]
        runs += [run(f"{OURS}, {HALF}", 50.0, HALF, 50.0, repeat=repeat)]
    return runs


@pytest.mark.parametrize("wrong", [0, 1])
def test_text_is_beside_the_loop_itself_and_peers(tiny_workload: Workload, tmp_path: Path, wrong: int) -> None:
    result = conclude(scenario(tiny_workload, tmp_path), rounds(wrong))
    found = {target.metric: (target.value, target.limit, target.met) for target in result.targets}
    is_right = not wrong
    assert found == {
        f"rate / {LOOP}": (0.9, 0.9, is_right),
        f"rate / {OURS}{NOT_PADDED}": (1.5833, 1.5, is_right),
        "rate / MLServer": (2.0, 1.0, is_right),
        TAIL: (2.5, 3.0, True),
    }
    [row] = [row for row in result.rows if row.system == OURS]
    assert (row.metrics["deviation"].median, row.metrics["cosine"].median) == (0.25, 0.98)
    assert "sorted loop" in drawn(result, tmp_path)
    assert result.method.endswith("It is tiny.")


def test_text_systems_have_a_turn_in_each_round(tiny_workload: Workload, tmp_path: Path) -> None:
    labels = [step.label for step in scenario(tiny_workload, tmp_path).steps()]
    assert len(labels) == len(set(labels)) == 1 + 2 * 5
    assert "text, round 2: MLServer" in labels
