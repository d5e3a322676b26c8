"""The supervisor of a real stack."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
from typer.testing import CliRunner

from anabranch.cli import app
from anabranch.stack import local_stack
from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.local_stack import StackStatus
from anabranch.stack.restart_policy import RestartLimits
from tests.arenas import processes_of


def await_status(folder: Path, condition: Callable[[StackStatus], bool], timeout_s: float = 45) -> StackStatus:
    give_up_at = monotonic() + timeout_s
    while not condition(found := local_stack.status(folder)):
        assert monotonic() < give_up_at, found
        sleep(0.2)
    return found


def has_others_than(pids: list[int]) -> Callable[[StackStatus], bool]:
    return lambda found: bool(found.task_manager_pids) and found.task_manager_pids != pids


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.recovery
@pytest.mark.timeout(300)
def test_stack_killed_processes_start_again_up_to_a_limit(tmp_path: Path) -> None:
    limits = RestartLimits(max_restarts=2, window_s=600, first_pause_s=0.2)
    first, _ = local_stack.up(tmp_path, task_managers=1, kafka_port=0, flink_port=0, restart_limits=limits)
    assert first.flink_url is not None
    rest = FlinkRest(first.flink_url)
    try:
        pids = first.task_manager_pids
        for count in (1, 2):
            kill(pids[0])
            found = await_status(tmp_path, has_others_than(pids), timeout_s=15)
            pids = found.task_manager_pids
            assert found.restarts["task-manager-1"].count == count
            await_status(tmp_path, lambda _: rest.get("/overview")["slots-available"] == 1)
        kill(pids[0])
        found = await_status(tmp_path, lambda found: any(entry.given_up for entry in found.restarts.values()))
        assert found.gone == ["task-manager-1"]
        sleep(3)
        assert local_stack.status(tmp_path).task_manager_pids == []
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["status", "--data-dir", str(tmp_path)]).stdout
        assert "task-manager-1: stays down after 2 restarts; read `anabranch logs task-manager-1`" in shown
        logs = CliRunner().invoke(app, ["logs", "supervisor", "--data-dir", str(tmp_path)]).stdout
        assert "ERROR supervisor - task-manager-1 ended again after 2 restarts in 600 s: it stays down" in logs

        kill(found.broker_pid)
        kill(found.job_manager_pid)
        found = await_status(
            tmp_path,
            lambda now: (
                now.running
                and now.broker_pid not in (None, first.broker_pid)
                and now.job_manager_pid not in (None, first.job_manager_pid)
            ),
        )
        assert (found.bootstrap_servers, found.flink_url) == (first.bootstrap_servers, first.flink_url)

        kill(found.supervisor_pid)
        await_status(tmp_path, lambda found: found.supervisor_pid is None)
        again, started = local_stack.up(tmp_path, task_managers=1)
        assert started
        assert (again.gone, len(again.task_manager_pids)) == ([], 1)
        assert again.supervisor_pid is not None
        kill(again.task_manager_pids[0])
        await_status(tmp_path, has_others_than(again.task_manager_pids))
    finally:
        local_stack.down(tmp_path)
    assert processes_of(tmp_path) == []
