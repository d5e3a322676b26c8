"""`anabranch run` leaves slots for stages, and reports missing slots."""

from pathlib import Path
from typing import Any

import pytest

from anabranch.commands import run
from anabranch.stack import local_stack as stack
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkRest

URL = "http://127.0.0.1:8081"


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch, task_managers: int, stage_slots: int) -> int:
    """Returns the parallelism of a job on a stack of `task_managers`."""
    found = stack.StackStatus(
        running=True,
        data_dir=str(folder),
        bootstrap_servers="127.0.0.1:9092",
        flink_url=URL,
        task_manager_pids=list(range(task_managers)),
    )
    monkeypatch.setattr(stack, "status", lambda _: found)
    config, url = run._configure(None, folder, None, mini_cluster=False, servers=None, stage_slots=stage_slots)
    assert url == URL
    return config.job.parallelism


@pytest.mark.parametrize(
    ("task_managers", "stage_slots", "parallelism"), [(2, 0, 2), (5, 3, 2), (3, 2, 1), (2, 2, 1), (1, 4, 1)]
)
def test_configure_stage_slots_leave_the_parallelism(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_managers: int, stage_slots: int, parallelism: int
) -> None:
    assert configured(tmp_path, monkeypatch, task_managers, stage_slots) == parallelism


def test_check_slots_too_few_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def overview(_: FlinkRest, path: str) -> Any:
        assert path == "/overview"
        return {"slots-available": 4}

    monkeypatch.setattr(FlinkRest, "get", overview)
    run.check_slots(URL, parallelism=2, stage_slots=2, replaces=False)
    with pytest.raises(StackError, match=r"has 4 free slots, and the job needs 5 \(2 that serve, 3 for stages"):
        run.check_slots(URL, parallelism=2, stage_slots=3, replaces=False)
    with pytest.raises(StackError, match=r"the job needs 5: .*--task-managers N"):
        run.check_slots(URL, parallelism=5, stage_slots=0, replaces=False)
