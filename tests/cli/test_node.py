import re
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from anabranch.commands.node import ProcessKind, node
from anabranch.stack.errors import StackError
from anabranch.stack.flink_cluster import FlinkCluster

ANABRANCH = str(Path(sys.executable).with_name("anabranch"))


def test_a_node_joins_a_cluster_and_leaves_it(cluster: FlinkCluster, tmp_path: Path) -> None:
    configuration = str(cluster.rest.get("/jobmanager/config"))
    port = re.search(r"'jobmanager.rpc.port', 'value': '(\d+)'", configuration)
    assert port is not None
    options = [f"jobmanager.rpc.port={port.group(1)}", "taskmanager.resource-id=visitor"]
    arguments = [
        "node",
        "task-manager",
        "--memory",
        "1024",
        *(part for option in options for part in ("--set", option)),
    ]
    with (tmp_path / "out").open("wb") as out, subprocess.Popen([ANABRANCH, *arguments], stdout=out) as process:
        try:
            give_up_at = monotonic() + 60
            while "visitor" not in cluster.rest.task_manager_ids():
                assert process.poll() is None, (tmp_path / "out").read_text()[-2000:]
                assert monotonic() < give_up_at
                sleep(0.1)
        finally:
            process.terminate()
        # 143: it had the signal itself, for it is the process that we started.
        assert process.wait(20) in (143, -15)
    assert "Starting TaskManager" in (tmp_path / "out").read_text()


def test_an_option_without_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StackError, match="write KEY=VALUE"):
        node(ProcessKind.TASK_MANAGER, settings=["taskmanager.rpc.port"])
