"""Gateways of the local stack: each is a process, which the supervisor starts again at the same ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from anabranch.stack.errors import StackError, StartFailed
from anabranch.stack.ports import claim, is_free, prefer
from anabranch.stack.service import Service, ServiceGroup

NAME = "gateway"
HTTP_PORT = 8080
GRPC_PORT = 8085

_READY_TIMEOUT_S = 60.0
_STOP_GRACE_S = 10.0
_READ_BYTES = 64 * 1024


class GatewayAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Address of a gateway, as it prints it when it serves.

    Attributes:
        grpc_url: `HOST:PORT`.
    """

    http_url: str
    grpc_url: str
    pid: int


class GatewayPorts(msgspec.Struct, frozen=True, kw_only=True):
    """Ports of a gateway: 0 takes a free one, None the usual one or, if that is taken, a free one."""

    http: int | None = None
    grpc: int | None = None


class GatewayProcess(ServiceGroup):
    """One gateway.

    Args:
        folder: Folder of the stack.
        name: `gateway`, `gateway-2`, and so on.
        arguments: Options of `anabranch gateway`, without ports.
        tied: See `ServiceGroup`.
    """

    def __init__(
        self, folder: Path, name: str, ports: GatewayPorts, arguments: Sequence[str], *, tied: bool = False
    ) -> None:
        super().__init__(tied=tied, ready_timeout_s=_READY_TIMEOUT_S, stop_grace_s=_STOP_GRACE_S)
        self._folder = folder
        self._name = name
        self._ports = ports
        self._arguments = arguments
        self._usual_ports: list[int] = []

    @property
    def address(self) -> GatewayAddress:
        """The address, after `await_ready`."""
        found = self._printed()
        if found is None:
            raise StackError(f"{self._name} does not serve yet: call await_ready()")
        return found

    def await_ready(self) -> None:
        """Wait until it serves; start it again if another stack took its usual ports meanwhile."""
        try:
            super().await_ready()
        except StartFailed:
            if all(map(is_free, self._usual_ports)):
                raise
            self.kill()
            self.launch()
            super().await_ready()

    def _describe(self) -> Iterator[Service]:
        ports = [("--http-port", self._ports.http, HTTP_PORT), ("--grpc-port", self._ports.grpc, GRPC_PORT)]
        chosen = [prefer(usual) if wanted is None else claim(wanted, option) for option, wanted, usual in ports]
        self._usual_ports = [port for port, (_, wanted, _) in zip(chosen, ports, strict=True) if wanted is None]
        options = [text for port, (option, _, _) in zip(chosen, ports, strict=True) for text in (option, str(port))]
        out_path = str(self._folder / "logs" / f"{self._name}.out")
        yield Service(
            name=self._name,
            command=[sys.executable, "-m", "anabranch", "gateway", "--json", *options, *self._arguments],
            directory=str(self._folder),
            log_path=out_path,
            out_path=out_path,
        )

    def _is_ready(self, name: str) -> bool:  # noqa: ARG002 - it has one service
        return self._printed() is not None

    def _printed(self) -> GatewayAddress | None:
        pid = self._process(self._name).pid
        for line in reversed(_end_of(Path(self._services[self._name].out_path)).splitlines()):
            try:
                address = msgspec.json.decode(line, type=GatewayAddress)
            except msgspec.MsgspecError:
                continue
            return address if address.pid == pid else None
        return None


def next_name(taken: Sequence[str]) -> str:
    """Return a name for another gateway."""
    return next(name for number in range(len(taken) + 1) if (name := _name(number)) not in taken)


def _name(number: int) -> str:
    return f"{NAME}-{number + 1}" if number else NAME


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _READ_BYTES))
        return file.read()
