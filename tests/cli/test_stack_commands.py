import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import typer
from typer.testing import CliRunner

import anabranch as anabranch_package
from anabranch.cli import app, main
from anabranch.commands.output import OutputFormat
from tests.arenas import processes_of

ANABRANCH = str(Path(sys.executable).with_name("anabranch"))


def anabranch(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ANABRANCH, *arguments, "--data-dir", str(folder)], capture_output=True, text=True, check=False, timeout=90
    )


def get(door: dict[str, Any], path: str) -> Any:
    with urlopen(door["http_url"] + path, timeout=30) as response:
        return json.load(response)


@pytest.mark.slow
def test_help_option_prints_commands_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([ANABRANCH, "--help"], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Half a second on an idle machine; processor time does not depend on other load.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    for command in ("up", "down", "status"):
        assert f" {command} " in said


def test_version_option_prints_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"anabranch {anabranch_package.__version__}\n")


@pytest.mark.slow
def test_completion_lists_commands() -> None:
    environment = os.environ | {
        "_ANABRANCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "anabranch sta",
        "COMP_CWORD": "1",
    }
    said = subprocess.run([ANABRANCH], capture_output=True, text=True, check=False, env=environment).stdout
    assert said.split() == ["status"]


def printing_commands() -> list[str]:
    group: Any = typer.main.get_command(app)
    # These print progress, logs of Flink, or events.
    return sorted(set(group.commands) - {"down", "errors", "flow", "gateway", "process", "try"})


@pytest.mark.parametrize("command", printing_commands())
def test_command_has_output_option(command: str) -> None:
    group: Any = typer.main.get_command(app)
    options = {name: option for option in group.commands[command].params for name in option.opts}
    assert options["-o"] is options["--output"]
    assert options["-o"].default is OutputFormat.TABLE
    assert ("--json" in options) == (command in {"up", "status", "top"})


@pytest.mark.slow
def test_cli_import_loads_no_engine() -> None:
    code = "import sys, anabranch.cli; print(sorted({'pyflink', 'kafka', 'onnxruntime'} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_status_command_without_stack_exits_with_3(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["status", "--data-dir", str(tmp_path)])
    assert result.exit_code == 3
    assert "start one with `anabranch up`" in result.stdout
    result = CliRunner().invoke(app, ["status", "--json", "--data-dir", str(tmp_path)])
    assert json.loads(result.stdout)["running"] is False
    other = CliRunner().invoke(app, ["status", "-o", "json", "--data-dir", str(tmp_path)])
    assert other.stdout == result.stdout


def test_down_command_without_stack_succeeds(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["down", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert "nothing to stop" in result.stdout


def test_up_command_port_in_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["anabranch", "up", "--kafka-port", str(port), "--data-dir", str(tmp_path)])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.strip() and "Starting" not in line]
    assert lines == [
        f"port_in_use: port {port} is in use by another process: stop it, or choose another port with --kafka-port"
    ]


@pytest.mark.recovery
def test_up_command_killed_process_is_replaced(tmp_path: Path) -> None:
    free = [word for door in ("kafka", "flink", "http", "grpc") for word in (f"--{door}-port", "0")]
    up = anabranch("up", *free, "--task-managers", "1", "--json", folder=tmp_path)
    assert up.returncode == 0, up.stderr
    first: dict[str, Any] = json.loads(up.stdout)
    assert first["running"] is True
    assert len(first["task_manager_pids"]) == 1
    assert first["gone"] == []
    assert first["jobs"] == []
    [door] = first["gateways"]
    pids = {first["broker_pid"], first["job_manager_pid"], first["supervisor_pid"], *first["task_manager_pids"]}
    assert pids | {door["pid"]} == set(processes_of(tmp_path))
    assert get(door, "/v2/health/live") == {"live": True}

    status = anabranch("status", "--json", folder=tmp_path)
    assert status.returncode == 0
    assert json.loads(status.stdout) == {**first, "health": []}

    logs = anabranch("logs", "-o", "json", folder=tmp_path)
    assert (logs.returncode, logs.stderr) == (0, "")
    entries = [json.loads(line) for line in logs.stdout.splitlines()]
    assert {entry["source"] for entry in entries} >= {"broker", "job-manager", "task-manager-1"}
    assert "Kafka Server started" in anabranch("logs", "broker", "-n", "1000", folder=tmp_path).stdout

    detached = anabranch("gateway", "--detach", "--http-port", "0", "--grpc-port", "0", "--json", folder=tmp_path)
    assert detached.returncode == 0, detached.stderr
    other: dict[str, Any] = json.loads(detached.stdout)
    assert get(other, "/v2/models") == {"models": []}
    with urlopen(other["http_url"], timeout=60) as response:
        assert b"no job runs: start one with `anabranch run`" in response.read()
    found = json.loads(anabranch("status", "--json", folder=tmp_path).stdout)
    assert found["gateways"] == [door, {"name": "gateway-2", **other}]

    subprocess.run(["kill", "-9", str(first["task_manager_pids"][0])], check=True)
    time.sleep(0.2)
    again = anabranch("up", "--task-managers", "1", "--json", folder=tmp_path)
    second = json.loads(again.stdout)
    assert second["broker_pid"] == first["broker_pid"]
    assert second["job_manager_pid"] == first["job_manager_pid"]
    assert len(second["task_manager_pids"]) == 1
    assert second["task_manager_pids"] != first["task_manager_pids"]

    assert second["gateways"] == found["gateways"]

    third = anabranch("up", "--task-managers", "1", folder=tmp_path)
    assert third.returncode == 0
    assert "already running" in third.stdout

    down = anabranch("down", folder=tmp_path)
    assert down.returncode == 0
    assert processes_of(tmp_path) == []
    assert anabranch("status", folder=tmp_path).returncode == 3
