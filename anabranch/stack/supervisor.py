"""The supervisor: a process of the stack that starts the others again when they end by themselves."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import msgspec

from anabranch.stack import stack_record
from anabranch.stack.errors import StackError
from anabranch.stack.processes import LocalProcess, ProcessRecord, stop_all
from anabranch.stack.restart_policy import RestartPolicy
from anabranch.stack.service import Service
from anabranch.stack.stack_record import Restarts, StackRecord

NAME = "supervisor"

_POLL_S = 0.3
_LOG = logging.getLogger(NAME)


def service(folder: Path) -> Service:
    """Describe the supervisor of the stack in a folder."""
    out_path = str(folder / "logs" / f"{NAME}.out")
    command = [sys.executable, "-m", "anabranch.stack.supervisor", str(folder)]
    return Service(name=NAME, command=command, directory=str(folder), log_path=out_path, out_path=out_path)


class Supervisor:
    """Watches the processes of a stack; `pid` is its own process id."""

    def __init__(self, folder: Path, pid: int, clock: Callable[[], float] = monotonic) -> None:
        self._folder = folder
        self._pid = pid
        self._clock = clock
        self._policies: dict[str, RestartPolicy] = {}
        self._due_s: dict[str, float] = {}
        self._children: list[LocalProcess] = []

    def step(self) -> bool:
        """Look at all processes once; return whether the stack still has this supervisor."""
        # Reaps those that ended.
        self._children = [child for child in self._children if child.is_alive()]
        record = self._own_record()
        if record is None:
            return False
        now_s = self._clock()
        for process in record.processes:
            if process.name not in record.services or process.find():
                continue
            if process.name in self._due_s:
                if self._due_s[process.name] <= now_s:
                    del self._due_s[process.name]
                    self._start_again(process)
            elif not record.restarts.get(process.name, Restarts()).given_up:
                self._on_end(process, record, now_s)
        return True

    def _on_end(self, process: ProcessRecord, record: StackRecord, now_s: float) -> None:
        policy = self._policies.setdefault(process.name, RestartPolicy(record.restart_limits))
        start_s = policy.on_end(now_s)
        if start_s is None:
            limits = record.restart_limits
            _LOG.error(
                "%s ended again after %d restarts in %g s: it stays down",
                process.name,
                limits.max_restarts,
                limits.window_s,
            )
            self._update(process, given_up=True)
        else:
            _LOG.warning("%s ended: it starts again in %.1f s", process.name, start_s - now_s)
            self._due_s[process.name] = start_s

    def _start_again(self, ended: ProcessRecord) -> None:
        with stack_record.lock(self._folder):
            record = self._own_record()
            # `up` and `down` may have changed the stack.
            if record is None or ended not in record.processes or ended.find():
                return
            # Python workers may have outlived their TaskManager.
            stop_all([ended], 0)
            try:
                child = record.services[ended.name].start(tied=False)
            except (StackError, OSError):
                _LOG.exception("%s did not start", ended.name)
                return
            self._children.append(child)
            record.processes[record.processes.index(ended)] = child.record
            restarts = record.restarts.get(ended.name, Restarts())
            record.restarts[ended.name] = msgspec.structs.replace(restarts, count=restarts.count + 1)
            stack_record.write(self._folder, record)
        _LOG.warning("%s started again as process %d", ended.name, child.pid)

    def _update(self, process: ProcessRecord, *, given_up: bool) -> None:
        with stack_record.lock(self._folder):
            record = self._own_record()
            if record and process in record.processes:
                restarts = record.restarts.get(process.name, Restarts())
                record.restarts[process.name] = msgspec.structs.replace(restarts, given_up=given_up)
                stack_record.write(self._folder, record)

    def _own_record(self) -> StackRecord | None:
        record = stack_record.read(self._folder)
        owns = record and any(process.name == NAME and process.pid == self._pid for process in record.processes)
        return record if owns else None


def main() -> None:
    """Supervise the stack of a folder until it stops."""
    logging.basicConfig(format="%(asctime)s %(levelname)-5s %(name)s - %(message)s")
    folder = Path(sys.argv[1])
    supervisor = Supervisor(folder, os.getpid())
    # `up` holds the lock until the record names this process.
    with stack_record.lock(folder):
        pass
    while supervisor.step():
        sleep(_POLL_S)


if __name__ == "__main__":
    main()
