import re
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from anabranch.commands.process import ProcessKind, process
from anabranch.errors import UnusableArgument
from anabranch.stack.flink.cluster import FlinkCluster

ANABRANCH = str(Path(sys.executable).with_name("anabranch"))


def test_process_command_joins_cluster_until_terminated(cluster: FlinkCluster, tmp_path: Path) -> None:
    configuration = str(cluster.rest.get("/jobmanager/config"))
    port = re.search(r"'jobmanager.rpc.port', 'value': '(\d+)'", configuration)
    assert port is not None
    options = [f"jobmanager.rpc.port={port.group(1)}", "taskmanager.resource-id=visitor"]
    arguments = [
        "process",
        "task-manager",
        "--memory-mb",
        "1024",
        *(part for option in options for part in ("--set", option)),
    ]
    with (tmp_path / "out").open("wb") as out, subprocess.Popen([ANABRANCH, *arguments], stdout=out) as started:
        try:
            give_up_at = monotonic() + 60
            while "visitor" not in cluster.rest.task_manager_ids():
                assert started.poll() is None, (tmp_path / "out").read_text()[-2000:]
                assert monotonic() < give_up_at
                sleep(0.1)
        finally:
            started.terminate()
        # 143: the JVM has the process id of the command and received the signal itself.
        assert started.wait(20) in (143, -15)
    assert "Starting TaskManager" in (tmp_path / "out").read_text()


def test_process_command_setting_without_value_is_refused() -> None:
    with pytest.raises(UnusableArgument, match="write KEY=VALUE"):
        process(ProcessKind.TASK_MANAGER, settings=["taskmanager.rpc.port"])
