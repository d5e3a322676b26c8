"""`anabranch logs` on files of a stack."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from anabranch.cli import app
from anabranch.stack import local_stack
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from anabranch.stack.local_stack import StackStatus
from anabranch.stack.process_logs import LogEntry, LogFollower

ANABRANCH = Path(sys.executable).with_name("anabranch")
ERROR = """\
2026-11-29 07:00:0{second},100 ERROR anabranch.defects [] - defect in phase merge
Traceback (most recent call last):
  File "merge.py", line 1, in merge
KeyError: 'x'
"""
INFO = "2026-11-29 07:00:09,000 INFO  org.apache.Fetcher [] - no ERROR here, number {number}\n"
PYTHON = """\
WARNING:anabranch.runtime:slow
ERROR:anabranch.defects:defect in phase batch
Traceback (most recent call last):
ValueError: two
INFO:anabranch.runtime:fine
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Logs of a broker, and of a TaskManager with three errors, two of them the same."""
    written = tmp_path / "logs"
    written.mkdir()
    (written / "broker.log").write_text(INFO.format(number=1))
    infos = "".join(INFO.format(number=number) for number in range(20))
    (written / "task-manager-1.log").write_text(ERROR.format(second=1) + ERROR.format(second=2) + infos)
    (written / "task-manager-1.out").write_text(PYTHON)
    return tmp_path


def entries(result: Result) -> list[dict[str, str]]:
    """What `-o json` printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def run(folder: Path, *arguments: str) -> Result:
    """Runs `anabranch logs` in this process."""
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["logs", "--data-dir", str(folder), *arguments])


def test_logs_errors_come_before_tails(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert text.index("task-manager-1 | KeyError: 'x'") < text.index("task-manager-1 | ValueError: two")
    assert (
        text.index("ValueError: two") < text.index("broker | 2026-11-29") < text.rindex("task-manager-1 | 2026-11-29")
    )
    assert text.count("KeyError: 'x'") == 1
    assert "number 10" in text
    assert "number 9\n" not in text
    assert "slow" not in text


def test_logs_without_stack_names_the_remedy_on_stderr(folder: Path) -> None:
    result = run(folder)
    assert result.stderr == f"No stack runs in {folder}; these are its last logs: start one with `anabranch up`.\n"
    assert "No stack" not in result.stdout


def test_logs_json_is_one_object_for_each_entry(folder: Path) -> None:
    first, second, *lines = entries(run(folder, "-o", "json", "-n", "2"))
    assert first == {"kind": "error", "source": "task-manager-1", "text": ERROR.format(second=2).strip()}
    assert (second["kind"], second["text"].splitlines()) == ("error", PYTHON.splitlines()[1:4])
    assert [(line["kind"], line["source"]) for line in lines] == [
        ("line", "broker"),
        ("line", "task-manager-1"),
        ("line", "task-manager-1"),
    ]


def test_logs_errors_option_leaves_out_tails(folder: Path) -> None:
    with (folder / "logs" / "broker.log").open("a") as file:
        file.writelines(f"2026-11-29 07:00:10,000 FATAL broker [] - {number}\n" for number in range(9))
    found = entries(run(folder, "--errors", "-o", "json"))
    assert {entry["kind"] for entry in found} == {"error"}
    assert [entry["source"] for entry in found] == ["broker"] * 9 + ["task-manager-1"] * 2
    assert len(entries(run(folder, "-n", "0", "-o", "json"))) == 3 + 2, "only the last three of each process"


def test_logs_arguments_select_processes(folder: Path) -> None:
    text = run(folder, "broker").stdout
    assert "broker | " in text
    assert "task-manager" not in text
    both = entries(run(folder, "task-manager-1", "broker", "-o", "json"))
    assert {entry["source"] for entry in both} == {"broker", "task-manager-1"}
    result = run(folder, "brokr")
    assert result.exit_code == 1
    assert result.stderr == "stack_error: unknown process 'brokr'; available: broker, task-manager-1\n"


def test_logs_without_files_names_the_remedy(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "start a stack with `anabranch up`" in result.stderr


def test_logs_job_failure_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [FlinkJob("j", "serving", "RESTARTING", 1), FlinkJob("k", "fine", "RUNNING", 1)]
    status = StackStatus(running=True, data_dir="", flink_url="http://127.0.0.1:1", job_manager_pid=1, jobs=jobs)
    monkeypatch.setattr(local_stack, "status", lambda _: status)
    trace = "org.FlinkException: lost\n" + "\tat frame\n" * 60 + "Caused by: disk full\n" + "\tat frame\n" * 40
    monkeypatch.setattr(FlinkRest, "last_failure", lambda _, job_id: trace if job_id == "j" else "")
    text = run(folder).stdout
    assert text.startswith("job serving | RESTARTING: org.FlinkException: lost\njob serving |     at frame\n")
    assert text.index("... 55 frames") < text.index("job serving | Caused by: disk full") < text.index("KeyError: 'x'")
    assert "... 35 frames" in text
    assert "job fine" not in text
    first = entries(run(folder, "-o", "json"))[0]
    assert first == {"kind": "job_failure", "source": "job serving", "text": f"RESTARTING: {trace.strip()}"}
    assert "job serving" not in run(folder, "broker").stdout


def test_log_follower_reads_added_and_new_files(folder: Path) -> None:
    follower = LogFollower(folder / "logs")
    broker = folder / "logs" / "broker.log"
    assert list(follower.read()) == []
    with broker.open("a") as file:
        file.write("one\ntwo\nhal")
    assert list(follower.read()) == [LogEntry("broker", "one"), LogEntry("broker", "two")]
    with broker.open("a") as file:
        file.write("f\n")
    (folder / "logs" / "task-manager-2.log").write_text("new\n")
    assert list(follower.read()) == [LogEntry("broker", "half"), LogEntry("task-manager-2", "new")]
    broker.write_text("anew\n")
    assert list(follower.read()) == [LogEntry("broker", "anew")]


def test_log_follower_rotation_loses_no_line(folder: Path) -> None:
    follower = LogFollower(folder / "logs")
    broker = folder / "logs" / "broker.log"
    for round_ in range(3):
        with broker.open("a") as file:
            file.write(f"last of {round_}\n")
        broker.rename(broker.with_name("broker.log.1"))
        if round_ == 1:
            assert list(follower.read()) == [LogEntry("broker", "last of 1")], "no new file yet"
        # As long as the old one: its size does not tell the files apart.
        broker.write_text(f"more of {round_}\n")
        expected = [LogEntry("broker", text) for text in (f"last of {round_}", f"more of {round_}")]
        assert list(follower.read()) == expected[round_ == 1 :]


def test_log_follower_errors_only_keeps_tracebacks(folder: Path) -> None:
    follower = LogFollower(folder / "logs", ["task-manager-1"], errors_only=True)
    with (folder / "logs" / "task-manager-1.log").open("a") as file:
        file.write(INFO.format(number=1) + ERROR.format(second=5) + INFO.format(number=2))
    (folder / "logs" / "broker.log").write_text(ERROR.format(second=6))
    assert [entry.text for entry in follower.read()] == ERROR.format(second=5).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_logs_follow_prints_until_signalled(folder: Path, number: int) -> None:
    command = [str(ANABRANCH), "logs", "-f", "broker", "--data-dir", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "no ERROR here" not in process.stdout.readline():
            assert process.poll() is None
        assert "start one with" in process.stderr.readline()
        with (folder / "logs" / "broker.log").open("a") as file:
            file.write("later\n")
        assert process.stdout.readline() == "broker | later\n"
        process.send_signal(number)
        assert process.wait(20) == (0 if number == signal.SIGINT else 128 + number)
        assert process.stderr.read() == ""
