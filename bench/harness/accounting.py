"""Who used how much processor time and memory, by process tree.

Rates on a machine that others use too say little; core-seconds for each 1,000 requests say more.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import psutil

_MB = 1e6


@dataclass(frozen=True)
class Moment:
    """What had been used at one moment.

    Attributes:
        core_s: Core-seconds so far, by part: `broker java`, `system python`.
        benchmark_core_s: Core-seconds so far of this process and all that it started, ended or not.
        machine_core_s: Core-seconds so far of everything on this machine.
    """

    at_s: float
    core_s: Mapping[str, float]
    benchmark_core_s: float
    machine_core_s: float


class ProcessorTime:
    """The processor time of some process trees.

    Args:
        roots: A name for each, and the process ids at their roots.
    """

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        self._roots = dict(roots)

    def look(self) -> Moment:
        """What has been used up to now."""
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
    """Core-seconds for each 1,000 requests between two moments, by part; parts that used none are left out."""
    spent = {part: used - before.core_s.get(part, 0.0) for part, used in after.core_s.items()}
    return {part: round(used * 1000 / max(requests, 1), 5) for part, used in sorted(spent.items()) if used > 0}


def other_cores(before: Moment, after: Moment) -> float:
    """Cores that something outside the benchmark kept busy: near 0 on a machine of our own."""
    ours = after.benchmark_core_s - before.benchmark_core_s
    everything = after.machine_core_s - before.machine_core_s
    return round(max(0.0, everything - ours) / max(after.at_s - before.at_s, 1e-9), 3)


def resident_mb(pid: int) -> float:
    """Memory that a process tree has in RAM."""
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
