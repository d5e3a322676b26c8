"""Placement of tasks, from Flink's REST interface to the picture."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from anabranch.commands.stack import picture
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from anabranch.stack.flink.task_placement import operator_of, workers
from anabranch.stack.local_stack import StackStatus

#: Answers of Flink 2.3, without unused parts.
ANSWERS: dict[str, Any] = {
    "/taskmanagers": {
        "taskmanagers": [
            {"id": "task-manager-10", "slotsNumber": 1, "freeSlots": 1},
            {"id": "task-manager-2", "slotsNumber": 1, "freeSlots": 0},
            {"id": "task-manager-1", "slotsNumber": 2, "freeSlots": 0},
        ]
    },
    "/jobs/j/config": {"execution-config": {"user-config": {"anabranch.models": "a/1, b/2"}}},
    "/jobs/j": {
        "vertices": [
            {"id": "s", "name": "Source: requests -> serve -> unpack -> responses: Writer"},
            {"id": "t", "name": "cut/1 stage 2/3"},
        ]
    },
    "/jobs/j/vertices/s": {"subtasks": [{"subtask": 0, "taskmanager-id": "task-manager-1"}]},
    "/jobs/j/vertices/t": {
        "subtasks": [
            {"subtask": 0, "taskmanager-id": "task-manager-1"},
            {"subtask": 1, "taskmanager-id": "task-manager-2"},
        ]
    },
    "/jobs/j/vertices/s/metrics?get=0.busyTimeMsPerSecond": [{"id": "0.busyTimeMsPerSecond", "value": "NaN"}],
    "/jobs/j/vertices/t/metrics?get=0.busyTimeMsPerSecond,1.busyTimeMsPerSecond": [
        {"id": "1.busyTimeMsPerSecond", "value": "950.0"}
    ],
}
JOBS = [FlinkJob(job_id="j", name="job", state="RUNNING", start_time_ms=1)]


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlinkRest, "get", lambda _, path: json.loads(json.dumps(ANSWERS[path])))


def test_workers_of_cluster_have_their_tasks() -> None:
    one, two, ten = workers(FlinkRest("http://x:1"), JOBS)
    assert [worker.name for worker in (one, two, ten)] == ["task-manager-1", "task-manager-2", "task-manager-10"]
    assert (one.slots, one.free_slots) == (2, 0)
    assert [(task.operator, task.task, task.tasks, task.busy, task.models) for task in one.tasks] == [
        ("serve", 1, 1, None, ["a/1", "b/2"]),
        ("cut/1 stage 2/3", 1, 2, None, []),
    ]
    assert [(task.operator, task.task, task.busy) for task in two.tasks] == [("cut/1 stage 2/3", 2, 0.95)]
    assert ten.tasks == []


def test_workers_failed_job_has_no_tasks() -> None:
    ended = [FlinkJob(job_id="j", name="job", state="FAILED", start_time_ms=1)]
    assert not any(worker.tasks for worker in workers(FlinkRest("http://x:1"), ended))


def test_picture_of_workers_shows_tasks_and_load() -> None:
    found = StackStatus(
        running=True, data_dir="d", job_manager_pid=4711, workers=workers(FlinkRest("http://x:1"), JOBS)
    )
    written = StringIO()
    Console(width=120, file=written).print(picture(found))
    lines = written.getvalue().splitlines()
    assert "JobManager" in lines[0]
    assert "4711" in lines[0]
    [at_2] = [number for number, line in enumerate(lines) if "task-manager-2" in line]
    assert "1 of 1 slots taken" in lines[at_2]
    assert "cut/1 stage 2/3" in lines[at_2 + 1]
    assert "task 2 of 2" in lines[at_2 + 1]
    assert "95% busy" in lines[at_2 + 1]
    assert any("serve" in line and "whole models: a/1, b/2" in line for line in lines)


@pytest.mark.parametrize(
    ("chain", "operator"),
    [
        ("Source: requests -> serve -> unpack", "serve"),
        ("serve-m/1 stage 1/2", "serve-m/1 stage 1/2"),
        ("infer", "infer"),
        ("my model/1 stage 1/12 -> other", "model/1 stage 1/12"),
        ("aggregate -> merged-responses: Writer", "aggregate"),
        ("responses: Committer", "responses: Committer"),
        ("Source: numbers -> map", "numbers"),
    ],
)
def test_operator_of_chain_prefers_known_operators(chain: str, operator: str) -> None:
    assert operator_of(chain) == operator


def test_task_manager_ids_before_the_slot_report_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"id": "task-manager-11", "slotsNumber": 0, "freeSlots": 0}
    others = ANSWERS["/taskmanagers"]["taskmanagers"]
    monkeypatch.setattr(FlinkRest, "get", lambda *_: {"taskmanagers": [new, *others]})
    assert FlinkRest("http://127.0.0.1:8081").task_manager_ids() == [each["id"] for each in others]
