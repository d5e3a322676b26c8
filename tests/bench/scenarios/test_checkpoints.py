"""The checkpoints scenario: which checkpoints count, and what follows from them."""

import time
from pathlib import Path
from typing import Any

from anabranch.stack.flink.rest import FlinkJob
from bench.harness.analysis.measures import Tally
from bench.harness.messages import ServeCommand
from bench.scenarios.checkpoints import CheckpointRun, Checkpoints, CheckpointSettings, following_checkpoints
from bench.systems.anabranch_job import config_of
from tests.bench.concluding import conclude, drawn


def run(system: str, times_ms: list[float]) -> CheckpointRun:
    return CheckpointRun(
        system=system,
        workload="split",
        repeat=0,
        tally=Tally(requests=10, answered=10, missing=0, wrong=0, repeated=0, deviation=0.0),
        core_s_per_1000={},
        other_cores=0.0,
        rate_per_s=100.0,
        times_ms=times_ms,
        state_kb=[10.0],
        failed=0,
    )


def test_checkpoints_longest_is_the_target(tmp_path: Path) -> None:
    quick, slow = "anabranch, thread, 2 tasks", "anabranch, thread, 2 tasks, exactly-once"
    result = conclude(Checkpoints(CheckpointSettings(), []), [run(quick, [40.0, 900.0]), run(slow, [30.0, 1200.0])])
    assert [(target.system, target.value, target.met) for target in result.targets] == [
        (quick, 900.0, True),
        (slow, 1200.0, False),
    ]
    assert result.rows[0].metrics["median_ms"].median == 470.0
    assert "split: anabranch, thread, 2 tasks, exactly-once" in drawn(result, tmp_path)


class Rest:
    """A job that has ended one checkpoint, and triggers another with each look."""

    def __init__(self) -> None:
        self.looks = 0

    def jobs(self) -> list[FlinkJob]:
        return [FlinkJob("ended", "old", "CANCELED", 0), FlinkJob("a", "new", "RUNNING", 1)]

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/jobs/a/checkpoints"
        self.looks += 1
        newest = range(max(0, self.looks - 3), self.looks)
        under_way = {self.looks - 1: "IN_PROGRESS"}
        return {"history": [{"id": number, "status": under_way.get(number, "COMPLETED")} for number in newest]}


def test_following_takes_later_checkpoints_once() -> None:
    rest: Any = Rest()
    with following_checkpoints(rest) as found:
        while rest.looks < 6:
            time.sleep(0.01)
    # The first was under way when the block began.
    assert sorted(found) == list(range(rest.looks))
    assert found[0]["status"] == "COMPLETED"


def test_command_of_a_delivery_becomes_the_job_of_it(tmp_path: Path) -> None:
    command = ServeCommand(
        kind="anabranch",
        bootstrap_servers="b",
        requests_topic="i",
        responses_topic="o",
        errors_topic="e",
        group_id="g",
        repository="r",
        delivery="exactly-once",
        checkpoint_folder=str(tmp_path),
        checkpoint_interval_ms=1000,
    )
    job = config_of(command).job
    assert (job.delivery, job.checkpoint_dir, job.checkpoint_interval_ms) == ("exactly-once", tmp_path.as_uri(), 1000)
