"""Load of each operator of a job, in the order of the data, from Flink's REST interface."""

from __future__ import annotations

from typing import Any

import msgspec

from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.flink.task_placement import operator_of

_BUSY = "busyTimeMsPerSecond"
_HELD = "backPressuredTimeMsPerSecond"
_PENDING = ".pendingRecords"


class OperatorLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Load of one operator in the last second.

    Attributes:
        name: See `operator_of`.
        running: Tasks that run, of `tasks`.
        busy: Busy part of the busiest task; None if unknown.
        held_up: Part of its time that the most delayed task waits for the next operator.
        waiting: Records in Kafka that it has not read; None if it reads none.
    """

    name: str
    tasks: int
    running: int
    busy: float | None = None
    held_up: float | None = None
    waiting: int | None = None


def operator_loads(rest: FlinkRest, job_id: str) -> list[OperatorLoad]:
    """Return the operators of a job; raise StackError."""
    return [_load(rest, job_id, vertex) for vertex in rest.get(f"/jobs/{job_id}")["vertices"]]


def _load(rest: FlinkRest, job_id: str, vertex: dict[str, Any]) -> OperatorLoad:
    path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
    pending = [each["id"] for each in rest.get(path) if each["id"].endswith(_PENDING)]
    wanted = ",".join([_BUSY, _HELD, *pending])
    found = {each["id"]: each for each in rest.get(f"{path}?agg=max,sum&get={wanted}")}
    waiting = [found[name]["sum"] for name in pending if name in found]
    return OperatorLoad(
        name=operator_of(vertex["name"]),
        tasks=vertex["parallelism"],
        running=vertex["tasks"].get("RUNNING", 0),
        busy=_part(found.get(_BUSY)),
        held_up=_part(found.get(_HELD)),
        waiting=round(sum(waiting)) if waiting else None,
    )


def _part(metric: dict[str, Any] | None) -> float | None:
    try:
        part = float(metric["max"]) / 1000 if metric else -1.0
    except ValueError:
        return None
    return part if 0 <= part <= 1 else None  # NaN if unknown
