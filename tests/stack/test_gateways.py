"""Gateways of a stack, as processes without Kafka."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anabranch.cli import app
from anabranch.stack import local_stack, stack_record
from anabranch.stack.errors import NotRunning, PortInUse, StartFailed
from anabranch.stack.gateways import GatewayAddress, GatewayPorts, GatewayProcess, next_name
from anabranch.stack.ports import free_port, prefer
from anabranch.stack.processes import ProcessRecord

#: Takes the place of `python -m anabranch`.
PRINTS = """#!{python}
import json, os, socket, sys, time
options = dict(zip(sys.argv[5::2], sys.argv[6::2]))
print("a warning", flush=True)
if "--fails" in sys.argv:
    sys.exit("ConfigError: it has no broker")
server = socket.create_server(("127.0.0.1", int(options["--http-port"])))
urls = {{"http_url": "http://127.0.0.1:" + options["--http-port"], "grpc_url": "127.0.0.1:" + options["--grpc-port"]}}
print(json.dumps({{**urls, "pid": os.getpid()}}), flush=True)
print("another warning", flush=True)
time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "python"
    path.write_text(PRINTS.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr("anabranch.stack.gateways.sys.executable", str(path))
    return path


def record(folder: Path) -> stack_record.StackRecord:
    found = stack_record.read(folder)
    assert found is not None
    return found


@pytest.mark.usefixtures("program")
def test_gateway_process_tells_its_own_address(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    # Of a gateway of an earlier stack.
    stale = {"http_url": "http://127.0.0.1:1", "grpc_url": "127.0.0.1:2", "pid": 1}
    (tmp_path / "logs" / "gateway.out").write_text(json.dumps(stale) + "\n")
    http, grpc = free_port(), free_port()
    with GatewayProcess(tmp_path, "gateway", GatewayPorts(http=http, grpc=grpc), []) as door:
        [process] = door.processes
        assert door.address == GatewayAddress(
            http_url=f"http://127.0.0.1:{http}", grpc_url=f"127.0.0.1:{grpc}", pid=process.pid
        )


@pytest.mark.usefixtures("program")
def test_gateway_process_that_ends_is_a_failed_start(tmp_path: Path) -> None:
    door = GatewayProcess(tmp_path, "gateway", GatewayPorts(http=0, grpc=0), ["--fails"])
    with pytest.raises(StartFailed, match="it has no broker"):
        door.start()


def test_gateway_process_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match="--http-port"):
            GatewayProcess(tmp_path, "gateway", GatewayPorts(http=port), []).launch()
        assert prefer(port) != port


@pytest.mark.usefixtures("program")
def test_gateway_process_usual_port_lost_takes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    usual, others = free_port(), list[socket.socket]()

    def prefer_while_another_starts(port: int) -> int:
        chosen = prefer(port)
        if chosen == usual:
            others.append(socket.create_server(("127.0.0.1", usual)))
        return chosen

    monkeypatch.setattr("anabranch.stack.gateways.HTTP_PORT", usual)
    monkeypatch.setattr("anabranch.stack.gateways.prefer", prefer_while_another_starts)
    with GatewayProcess(tmp_path, "gateway", GatewayPorts(grpc=0), []) as door:
        assert door.address.http_url != f"http://127.0.0.1:{usual}"
        assert door.address.pid == door.processes[0].pid
    [other] = others
    other.close()


@pytest.mark.usefixtures("program")
def test_add_gateway_running_stack_owns_and_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_record.write(tmp_path, stack_record.StackRecord(bootstrap_servers="127.0.0.1:9", flink_url="http://none:9"))
    monkeypatch.setattr(local_stack, "require", local_stack.status)
    ports = GatewayPorts(http=0, grpc=0)
    first = local_stack.add_gateway(tmp_path, ports, ["--timeout-s", "5"])
    second = local_stack.add_gateway(tmp_path, ports, [])
    found = local_stack.status(tmp_path)
    assert [(door.name, door.pid) for door in found.gateways] == [("gateway", first.pid), ("gateway-2", second.pid)]
    assert record(tmp_path).services["gateway"].command[-2:] == ["--timeout-s", "5"], "the supervisor starts it so"
    os.kill(first.pid, 9)
    os.waitpid(first.pid, 0)
    found = local_stack.status(tmp_path)
    assert (found.gateways[0].pid, found.gone) == (None, ["gateway"])
    local_stack.down(tmp_path)
    assert ProcessRecord.find(_record_of(second.pid)) is None


def _record_of(pid: int) -> ProcessRecord:
    return ProcessRecord(name="", pid=pid, started_at=0.0, marker="")


def test_add_gateway_without_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="anabranch up"):
        local_stack.add_gateway(tmp_path, GatewayPorts(), [])


def test_gateway_next_name_is_the_first_free_one() -> None:
    assert next_name(["broker"]) == "gateway"
    assert next_name(["gateway", "gateway-2", "broker"]) == "gateway-3"
    assert next_name(["gateway-2"]) == "gateway"


def test_gateway_detach_hands_its_options_to_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[Path, GatewayPorts, list[str]]] = []

    def add_gateway(*given: Any) -> GatewayAddress:
        handed.append(given)
        return GatewayAddress(http_url="http://127.0.0.1:1", grpc_url="127.0.0.1:2", pid=3)

    monkeypatch.setattr(local_stack, "add_gateway", add_gateway)
    monkeypatch.chdir(tmp_path)
    stack = stack_record.StackRecord(bootstrap_servers="127.0.0.1:9", flink_url="http://127.0.0.1:8")
    (tmp_path / "stack").mkdir()
    stack_record.write(tmp_path / "stack", stack)
    (tmp_path / "keys").write_text("0123456789abcdef")
    command = ["gateway", "--detach", "--json", "--data-dir", "stack", "--http-port", "0", "--api-keys", "keys"]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout) == {"http_url": "http://127.0.0.1:1", "grpc_url": "127.0.0.1:2", "pid": 3}
    [(folder, ports, arguments)] = handed
    assert (folder, ports) == (tmp_path / "stack", GatewayPorts(http=0))
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (
        options.items()
        >= {
            "--bootstrap-servers": "127.0.0.1:9",
            "--flink-url": "http://127.0.0.1:8",
            "--api-keys": str(tmp_path / "keys"),
        }.items()
    )
    assert "Serves HTTP at" in CliRunner().invoke(app, [*command[:2], "--data-dir", "stack"]).stdout
