"""Machines of their own for TaskManagers: network namespaces behind a bridge.

job, broker, JobManager     TaskManager 1     TaskManager 2
      10.77.N.1 ---------- 10.77.N.2 ------- 10.77.N.3
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from anabranch.stack.flink.rest import FlinkRest
from anabranch.stack.ports import free_port
from anabranch.stack.service import Service, ServiceGroup

_LISTEN = ("--listen", "0.0.0.0")


class Hosts(ServiceGroup):
    """A Flink cluster of one TaskManager for each machine, started as the documentation says."""

    def __init__(self, folder: Path, network: str, machines: Sequence[tuple[str, str]], slots: int) -> None:
        super().__init__(tied=True, ready_timeout_s=120, stop_grace_s=5)
        self._folder = folder
        self._master = f"{network}.1"
        self._machines = machines
        self._slots = slots
        self._rest_port, self._rpc_port = free_port(), free_port()

    @property
    def url(self) -> str:
        """Address of the REST interface."""
        return f"http://{self._master}:{self._rest_port}"

    def logs(self) -> str:
        """What all TaskManagers wrote."""
        return "".join((self._folder / f"{name}.out").read_text(errors="replace") for name, _ in self._machines)

    def _describe(self) -> Iterator[Service]:
        yield self._service("job-manager", [], "job-manager", f"rest.port={self._rest_port}")
        for name, address in self._machines:
            inside = ["ip", "netns", "exec", name]
            yield self._service(name, inside, "task-manager", f"taskmanager.resource-id={name}", "--host", address)

    def _service(self, name: str, inside: list[str], kind: str, setting: str, *options: str) -> Service:
        command = [*inside, str(Path(sys.executable).with_name("anabranch")), "process", kind, *_LISTEN, *options]
        command += ["--job-manager", self._master, "--set", f"jobmanager.rpc.port={self._rpc_port}", "--set", setting]
        if kind == "task-manager":
            command += ["--slots", str(self._slots)]
        out = str(self._folder / f"{name}.out")
        return Service(name=name, command=command, directory=str(self._folder), log_path=out, out_path=out)

    def _is_ready(self, name: str) -> bool:
        rest = FlinkRest(self.url)
        return rest.is_up() if name == "job-manager" else name in rest.task_manager_ids()


@contextmanager
def machines(count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Make machines; return the network's first three numbers, and names and addresses. Skip without the right to."""
    number = os.getpid() % 200 + 20
    network, bridge = f"10.77.{number}", f"ab{number}"
    made = [(f"ab{number}-{index}", f"{network}.{index + 2}") for index in range(count)]
    if (
        os.geteuid()
        or subprocess.run(["ip", "netns", "add", f"ab{number}-try"], capture_output=True, check=False).returncode
    ):
        pytest.skip("network namespaces need root")
    with ExitStack() as ends:
        ends.callback(_ip, f"netns delete ab{number}-try")
        ends.callback(_ip, f"link delete {bridge}")
        _ip(f"link add {bridge} type bridge")
        _ip(f"address add {network}.1/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for index, (name, address) in enumerate(made):
            ends.callback(_ip, f"netns delete {name}")
            _ip(f"netns add {name}")
            _ip(f"link add {bridge}-{index} type veth peer name eth0 netns {name}")
            _ip(f"link set {bridge}-{index} master {bridge} up")
            for command in ("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up"):
                _ip(f"-n {name} {command}")
            _ip(f"-n {name} route add default via {network}.1")
        yield network, made


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)
