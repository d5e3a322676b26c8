"""The supervisor on processes without an engine."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from anabranch.stack import stack_record
from anabranch.stack.processes import ProcessRecord, stop_all
from anabranch.stack.restart_policy import RestartLimits
from anabranch.stack.service import Service
from anabranch.stack.stack_record import Restarts, StackRecord
from anabranch.stack.supervisor import NAME, Supervisor

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


class Clock:
    """Time that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Sleepers:
    """A stack of sleeping processes, and a supervisor in this process."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.clock = Clock()
        services = {
            name: Service(
                name=name,
                command=SLEEP,
                directory=str(folder),
                log_path=str(folder / name),
                out_path=str(folder / name),
            )
            for name in names
        }
        self._children = [service.start(tied=True) for service in services.values()]
        own = ProcessRecord(name=NAME, pid=os.getpid(), started_at=0.0, marker="")
        record = StackRecord(
            bootstrap_servers="",
            flink_url="",
            processes=[*(child.record for child in self._children), own],
            services=services,
            ready=True,
            restart_limits=RestartLimits(max_restarts=2, window_s=100, first_pause_s=1),
        )
        stack_record.write(folder, record)
        self.supervisor = Supervisor(folder, os.getpid(), self.clock)

    @property
    def record(self) -> StackRecord:
        """The stack's record."""
        record = stack_record.read(self.folder)
        assert record is not None
        return record

    def pid(self, name: str) -> int | None:
        """Process id of a process that runs."""
        [process] = [process for process in self.record.processes if process.name == name]
        return process.pid if process.find() else None

    def kill(self, name: str) -> None:
        """Kills a process and waits until it has ended."""
        process = psutil.Process(self.pid(name))
        process.kill()
        psutil.wait_procs([process], timeout=10)

    def step_at(self, now_s: float) -> bool:
        """Steps once at a time."""
        self.clock.now_s = now_s
        return self.supervisor.step()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Sleepers]:
    sleepers = Sleepers(tmp_path, ["one", "two"])
    yield sleepers
    stop_all([process for process in sleepers.record.processes if process.name != NAME], 0)


def test_supervisor_killed_process_starts_after_a_pause(stack: Sleepers) -> None:
    before, other = stack.pid("one"), stack.pid("two")
    assert stack.step_at(0)
    stack.kill("one")
    assert stack.step_at(10)
    assert stack.step_at(10.9)
    assert stack.pid("one") is None
    assert stack.step_at(11)
    assert stack.pid("one") not in (None, before)
    assert stack.pid("two") == other
    assert stack.record.restarts == {"one": Restarts(count=1)}
    assert [process.name for process in stack.record.processes] == ["one", "two", NAME]


def test_supervisor_limit_leaves_the_process_down(stack: Sleepers) -> None:
    for now_s in (0, 10):
        stack.kill("one")
        stack.step_at(now_s)
        stack.step_at(now_s + 5)
        assert stack.pid("one") is not None
    stack.kill("one")
    for now_s in (20, 25, 1000, 2000):
        assert stack.step_at(now_s)
    assert stack.pid("one") is None
    assert stack.record.restarts == {"one": Restarts(count=2, given_up=True)}
    stack.kill("two")
    stack.step_at(3000)
    stack.step_at(3001)
    assert stack.pid("two") is not None, "each process has a limit of its own"


def test_supervisor_removed_process_is_not_started(stack: Sleepers) -> None:
    stack.kill("one")
    stack.step_at(0)
    record = stack.record
    record.processes = [process for process in record.processes if process.name != "one"]
    stack_record.write(stack.folder, record)
    assert stack.step_at(10)
    assert [process.name for process in stack.record.processes] == ["two", NAME]
    assert stack.record.restarts == {}


def test_supervisor_failed_start_is_tried_again(stack: Sleepers) -> None:
    record = stack.record
    sound = record.services["one"]
    record.services["one"] = msgspec.structs.replace(sound, command=["/no/such/program"])
    stack_record.write(stack.folder, record)
    stack.kill("one")
    stack.step_at(0)
    assert stack.step_at(1)
    assert stack.pid("one") is None
    record = stack.record
    record.services["one"] = sound
    stack_record.write(stack.folder, record)
    stack.step_at(2)
    stack.step_at(4)
    assert stack.pid("one") is not None


@pytest.mark.parametrize("successor", [None, 1])
def test_supervisor_ends_with_its_stack(stack: Sleepers, successor: int | None) -> None:
    record = stack.record
    if successor is None:
        stack_record.path_of(stack.folder).unlink()
    else:
        own = ProcessRecord(name=NAME, pid=successor, started_at=0.0, marker="")
        record.processes[-1] = own
        stack_record.write(stack.folder, record)
    stack.kill("one") if successor else None
    assert not stack.step_at(0)
    assert not stack.step_at(10)
    stack_record.write(stack.folder, record)
    assert (stack.pid("one") is None) == (successor is not None)
