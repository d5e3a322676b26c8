"""Placement and load of the tasks of a Flink cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from anabranch.stack.flink.rest import FlinkJob, FlinkRest

#: Names of Anabranch's operators in the name of an operator chain.
_TELLING = re.compile(r"(?<![\w/.-])(\S+ stage \d+/\d+|serve|infer|aggregate)(?!\w)")
_BUSY = "busyTimeMsPerSecond"


class PlacedTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of an operator chain.

    Attributes:
        operator: See `operator_of`.
        task: Number of the task, from 1.
        busy: Busy part of the last second; None if unknown.
        models: Name and version of each uncut model.
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
        name: Flink's identifier.
        tasks: Running tasks, in the order of the data.
    """

    name: str
    slots: int
    free_slots: int
    tasks: list[PlacedTask] = []


def workers(rest: FlinkRest, jobs: list[FlinkJob]) -> list[Worker]:
    """Return all TaskManagers with their running tasks."""
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
    """Return the operator that names a chain, such as `serve` or `NAME/VERSION stage 1/3`."""
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
    return value if value is not None and 0 <= value <= 1 else None  # NaN if unknown


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
