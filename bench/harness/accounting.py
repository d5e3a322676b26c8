"""Processor time and memory of process trees."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import psutil

_MB = 1e6


@dataclass(frozen=True)
class Moment:
    """Processor time used up to one moment.

    Attributes:
        core_s: Core-seconds by part: `broker java`, `system python`.
        benchmark_core_s: Core-seconds of this process and its descendants.
        machine_core_s: Core-seconds of the machine.
    """

    at_s: float
    core_s: Mapping[str, float]
    benchmark_core_s: float
    machine_core_s: float


class ProcessorTime:
    """The processor time of some process trees.

    Args:
        roots: Root process ids by name.
    """

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        self._roots = dict(roots)

    def look(self) -> Moment:
        """Processor time used until now."""
        core_s: dict[str, float] = {}
        for name, pids in self._roots.items():
            for process in [process for pid in pids for process in _tree(pid)]:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    part = f"{name} {_program(process)}"
                    core_s[part] = core_s.get(part, 0.0) + times.user + times.system
        machine = psutil.cpu_times()
        busy_s = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return Moment(monotonic(), core_s, _own_core_s(), busy_s)


def core_s_per_1000(before: Moment, after: Moment, requests: int) -> dict[str, float]:
    """Core-seconds per 1,000 requests between two moments, by part; without idle parts."""
    spent = {part: used - before.core_s.get(part, 0.0) for part, used in after.core_s.items()}
    return {part: round(used * 1000 / max(requests, 1), 5) for part, used in sorted(spent.items()) if used > 0}


def other_cores(before: Moment, after: Moment) -> float:
    """Cores that processes outside the benchmark kept busy."""
    ours = after.benchmark_core_s - before.benchmark_core_s
    everything = after.machine_core_s - before.machine_core_s
    return round(max(0.0, everything - ours) / max(after.at_s - before.at_s, 1e-9), 3)


def resident_mb(pid: int) -> float:
    """Resident memory of a process tree."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total / _MB


def _own_core_s() -> float:
    own = psutil.Process().cpu_times()
    total: float = own.children_user + own.children_system
    for process in _tree(os.getpid()):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _program(process: psutil.Process) -> str:
    name = process.name()
    return "python" if name.startswith("python") else name
