"""Ctrl-C and SIGTERM end the commands of the stack without a traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Calls of the stack that a command would wait for, replaced by one that only waits.
WAITING = """
import sys, time
from anabranch.stack import local_stack
def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(60)
local_stack.up = local_stack.down = local_stack.status = wait
from anabranch.cli import main
main()
"""
#: Waits while the modules of the commands are imported.
IMPORTING = """
import sys, time
class Wait:
    def find_spec(self, name, *_):
        if name == "anabranch.commands.stack":
            print("waiting", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Wait())
from anabranch.__main__ import main
main()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def interrupt(program: str, number: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Sends a signal to a program once it waits; returns its exit code and its standard error."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["up", "down", "status", "top", "logs"])
def test_signal_during_command_ends_it_quietly(tmp_path: Path, command: str, number: signal.Signals) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "broker.log").touch()
    code, errors = interrupt(WAITING, number, command, "--data-dir", str(tmp_path))
    assert code == 128 + number
    assert "Traceback" not in errors
    assert "Error" not in errors


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_imports_ends_quietly(number: signal.Signals) -> None:
    assert interrupt(IMPORTING, number, "status") == (-number, "")
