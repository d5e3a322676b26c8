"""Who does what in a Flink cluster: which TaskManager runs which task of which job, and how busy each is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from anabranch.stack.flink_rest import FlinkJob, FlinkRest

#: The operators of ours that a chain may be named after, the most telling first.
_TELLING = re.compile(r"(?<![\w/.-])(\S+ stage \d+/\d+|serve|infer|aggregate)(?!\w)")
_BUSY = "busyTimeMsPerSecond"


class PlacedTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of an operator chain.

    Attributes:
        job: The job's name.
        operator: What the chain does, in a word or two; `NAME/VERSION stage 1/3` for a stage of a model.
        task: Which of the operator's tasks, from 1.
        tasks: How many of them there are.
        busy: The part of the last second that it worked, from 0 to 1; None where Flink does not know yet.
        models: What it holds as a whole: name and version of each.
    """

    job: str
    operator: str
    task: int
    tasks: int
    busy: float | None = None
    models: list[str] = []


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One TaskManager.

    Attributes:
        name: Flink's identifier of it.
        slots: How many it has.
        free_slots: How many of them no job holds.
        tasks: What it runs, in the order of the data.
    """

    name: str
    slots: int
    free_slots: int
    tasks: list[PlacedTask] = []


def workers(rest: FlinkRest, jobs: list[FlinkJob]) -> list[Worker]:
    """All TaskManagers of a cluster, with what they run of the jobs that run.

    Raises:
        StackError: the cluster does not answer.
    """
    tasks: dict[str, list[PlacedTask]] = {}
    for job in jobs:
        if job.state == "RUNNING":
            for worker, task in _tasks_of(rest, job):
                tasks.setdefault(worker, []).append(task)
    managers = rest.get("/taskmanagers")["taskmanagers"]
    return [
        Worker(
            name=manager["id"],
            slots=manager["slotsNumber"],
            free_slots=manager["freeSlots"],
            tasks=tasks.get(manager["id"], []),
        )
        for manager in sorted(managers, key=lambda manager: _natural(manager["id"]))
    ]


def operator_of(chain: str) -> str:
    """What Flink's name of an operator chain tells: our operator in it, or else its first one."""
    telling = _TELLING.search(chain)
    return telling.group(1) if telling else chain.partition(" -> ")[0].removeprefix("Source: ")


def _tasks_of(rest: FlinkRest, job: FlinkJob) -> Iterator[tuple[str, PlacedTask]]:
    models = [name for name in rest.job_parameters(job.job_id).get("anabranch.models", "").split(", ") if name]
    for vertex in rest.get(f"/jobs/{job.job_id}")["vertices"]:
        path = f"/jobs/{job.job_id}/vertices/{vertex['id']}"
        subtasks = rest.get(path)["subtasks"]
        names = ",".join(f"{subtask['subtask']}.{_BUSY}" for subtask in subtasks)
        busy = {metric["id"]: metric["value"] for metric in rest.get(f"{path}/metrics?get={names}")}
        operator = operator_of(vertex["name"])
        for subtask in subtasks:
            number = subtask["subtask"]
            yield (
                subtask["taskmanager-id"],
                PlacedTask(
                    job=job.name,
                    operator=operator,
                    task=number + 1,
                    tasks=len(subtasks),
                    busy=_part(busy.get(f"{number}.{_BUSY}")),
                    models=models if operator in {"serve", "infer"} else [],
                ),
            )


def _part(busy_ms: Any) -> float | None:
    value = float(busy_ms) / 1000 if busy_ms is not None else None
    return value if value is not None and 0 <= value <= 1 else None  # Flink says NaN of what it cannot tell


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
