"""`anabranch run` with a MiniCluster ends in order at Ctrl-C and SIGTERM, at any moment."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anabranch.stack.kafka.broker import KafkaBroker


def run(broker: KafkaBroker, repository: Path) -> subprocess.Popen[str]:
    """Starts the command, in a folder without a local stack."""
    options = ("--mini-cluster", "--bootstrap-servers", broker.bootstrap_servers, "--model-repository", str(repository))
    command = (sys.executable, "-u", "-m", "anabranch", "run", *options, "--data-dir", str(repository / "none"))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.recovery
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_as_soon_as_job_serves_drains_it(broker: KafkaBroker, model_repository: Path, number: int) -> None:
    with run(broker, model_repository) as process:
        assert process.stdout
        shown = ""
        while "serves" not in shown and (line := process.stdout.readline()):
            shown += line
        process.send_signal(number)
        shown += process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, shown
    assert "All requests that were read are answered." in shown
    assert "Traceback" not in shown
    assert "ERROR" not in shown


@pytest.mark.recovery
@pytest.mark.timeout(200)
@pytest.mark.parametrize("delay_s", [5.0, *(pytest.param(delay_s, marks=pytest.mark.long) for delay_s in (2.0, 8.0))])
def test_signal_amid_submission_ends_run_quietly(broker: KafkaBroker, model_repository: Path, delay_s: float) -> None:
    with run(broker, model_repository) as process:
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=120)[0]
    assert process.returncode in {128 + signal.SIGINT, -signal.SIGINT}, shown
    assert "Traceback" not in shown
    assert "ERROR" not in shown
