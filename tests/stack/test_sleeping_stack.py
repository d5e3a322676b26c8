"""A stack of sleeping processes, with a supervisor process of its own."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
from typer.testing import CliRunner

from anabranch.cli import app
from anabranch.stack import local_stack, supervisor
from anabranch.stack.errors import NotRunning
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.local_stack import StackStatus
from anabranch.stack.restart_policy import RestartLimits
from anabranch.stack.service import Service, ServiceGroup
from anabranch.stack.stack_record import Restarts
from tests.arenas import processes_of

pytestmark = pytest.mark.slow
LIMITS = RestartLimits(max_restarts=2, window_s=600, first_pause_s=0.1)


class Sleepers(ServiceGroup):
    """Stands in for a broker or a cluster."""

    bootstrap_servers = "127.0.0.1:1"
    url = "http://127.0.0.1:2"

    def __init__(self, folder: Path, names: list[str]) -> None:
        super().__init__(tied=False, ready_timeout_s=10, stop_grace_s=1)
        self._folder = folder
        self._names = names

    def add_task_manager(self) -> int:
        self._launch(self._service("task-manager-9"))
        return 9

    def _describe(self) -> Iterator[Service]:
        return map(self._service, self._names)

    def _service(self, name: str) -> Service:
        log = str(self._folder / "logs" / f"{name}.log")
        command = [sys.executable, "-c", "import time; time.sleep(300)"]
        return Service(name=name, command=command, directory=str(self._folder), log_path=log, out_path=log)

    def _is_ready(self, name: str) -> bool:
        return name in self.services


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(local_stack, "KafkaBroker", lambda *_, **__: Sleepers(tmp_path, ["broker"]))
    names = ["job-manager", "task-manager-1"]
    monkeypatch.setattr(local_stack, "FlinkCluster", lambda *_, **__: Sleepers(tmp_path, names))
    monkeypatch.setattr(FlinkRest, "jobs", lambda _: [])
    monkeypatch.setattr(local_stack, "answers", lambda _: True)
    monkeypatch.setattr(local_stack, "workers", lambda *_: [])
    local_stack.up(tmp_path, task_managers=1, restart_limits=LIMITS)
    yield tmp_path
    with suppress(NotRunning):
        local_stack.down(tmp_path)
    assert processes_of(tmp_path) == []


def await_status(folder: Path, condition: Callable[[StackStatus], bool]) -> StackStatus:
    give_up_at = monotonic() + 20
    while not condition(found := local_stack.status(folder)):
        assert monotonic() < give_up_at, found
        sleep(0.05)
    return found


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_supervisor_process_restarts_up_to_a_limit(folder: Path) -> None:
    pids = local_stack.status(folder).task_manager_pids
    for count in (1, 2):
        kill(pids[0])
        before = pids
        found = await_status(folder, lambda now, old=before: now.task_manager_pids not in ([], old))  # type: ignore[misc]
        assert found.restarts == {"task-manager-1": Restarts(count=count)}
        pids = found.task_manager_pids
    kill(pids[0])
    found = await_status(folder, lambda now: now.restarts["task-manager-1"].given_up)
    assert (found.gone, found.running) == (["task-manager-1"], True)
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["status", "--data-dir", str(folder)])
    assert shown.exit_code == 0
    assert "task-manager-1: stays down after 2 restarts; read `anabranch logs task-manager-1`" in shown.stdout
    log = (folder / "logs" / "supervisor.out").read_text()
    assert "ERROR supervisor - task-manager-1 ended again after 2 restarts in 600 s: it stays down" in log
    again, started = local_stack.up(folder, task_managers=1)
    assert started
    assert (again.gone, again.restarts, len(again.task_manager_pids)) == ([], {}, 1)
    assert again.supervisor_pid == found.supervisor_pid
    kill(again.task_manager_pids[0])
    found = await_status(folder, lambda now: now.task_manager_pids not in ([], again.task_manager_pids))
    assert found.restarts == {"task-manager-9": Restarts(count=1)}


def test_up_killed_supervisor_is_replaced(folder: Path) -> None:
    first = local_stack.status(folder)
    kill(first.supervisor_pid)
    found = await_status(folder, lambda now: now.supervisor_pid is None)
    assert (found.gone, found.running) == (["supervisor"], True)
    second, started = local_stack.up(folder, task_managers=1)
    assert started
    assert second.supervisor_pid not in (None, first.supervisor_pid)
    assert second.broker_pid == first.broker_pid
    kill(second.broker_pid)
    found = await_status(folder, lambda now: now.broker_pid not in (None, first.broker_pid))
    assert found.restarts == {"broker": Restarts(count=1)}
    assert not local_stack.up(folder, task_managers=1)[1]


def test_up_interrupted_supervisor_start_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_stack.down(folder)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "service", interrupted)
    with pytest.raises(KeyboardInterrupt):
        local_stack.up(folder, task_managers=1)
    assert processes_of(folder) == []
