import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from anabranch.stack.errors import StartFailed
from anabranch.stack.processes import LocalProcess, stop_all

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start(tmp_path: Path, command: list[str], *, name: str = "sleeper", tied: bool = True) -> LocalProcess:
    return LocalProcess.start(
        name, command, environment={}, directory=tmp_path, out_path=tmp_path / "sleeper.out", tied=tied
    )


def test_record_running_process_is_found(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    found = process.record.find()
    assert found is not None
    assert found.pid == process.pid
    process.kill()
    assert process.record.find() is None


def test_record_other_process_with_same_id_is_not_found(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    assert msgspec.structs.replace(process.record, started_at=1.0).find() is None
    stranger = msgspec.structs.replace(process.record, marker="/another/stack#sleeper")
    assert stranger.find() is None
    stop_all([stranger], grace_s=1)
    assert process.is_alive()
    process.kill()


@pytest.mark.slow
def test_stop_orphan_of_process_ends(tmp_path: Path) -> None:
    # As a Python worker does whose TaskManager crashed: it lives on as a child of process 1.
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)"
    process = start(tmp_path, [sys.executable, "-c", parent, *SLEEP])
    process.await_success(20)
    orphan = psutil.Process(int(process.log_path.read_text()))
    assert orphan.is_running()
    process.stop(grace_s=1)
    assert not orphan.is_running()


def test_stop_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
    )
    process = start(tmp_path, [sys.executable, "-c", stubborn])
    process.await_ready(lambda: "on" in process.log_path.read_text(), 20)
    process.stop(grace_s=0.2)
    assert not process.is_alive()
    assert process.record.find() is None


def test_await_ready_ended_process_raises_its_error(tmp_path: Path) -> None:
    process = start(tmp_path, [sys.executable, "-c", "raise ValueError('no such port')"])
    with pytest.raises(
        StartFailed, match=r"^sleeper ended with exit code 1: ValueError: no such port; its log is "
    ) as error:
        process.await_ready(lambda: False, 20)
    assert "Traceback" in error.value.tail
    assert error.value.log_path == tmp_path / "sleeper.out"


def test_await_ready_time_is_up_raises(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    with pytest.raises(StartFailed, match="was not ready within 0 s"):
        process.await_ready(lambda: False, 0.1)
    process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_tied_process_killed_parent_ends_it(tmp_path: Path) -> None:
    us = f"""
import sys, time
from pathlib import Path
from anabranch.stack.processes import LocalProcess
folder = Path({str(tmp_path)!r})
process = LocalProcess.start(
    "tied", {SLEEP!r}, environment={{}}, directory=folder, out_path=folder / "out", tied=True
)
print(process.pid, flush=True)
time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", us], stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        tied = psutil.Process(int(popen.stdout.readline()))
        popen.kill()
    give_up_at = time.monotonic() + 10
    while not has_ended(tied):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
