"""`stack.json`: the processes of a local stack."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anabranch.stack.errors import StackError
from anabranch.stack.gateways import GatewayAddress
from anabranch.stack.processes import ProcessRecord
from anabranch.stack.restart_policy import RestartLimits
from anabranch.stack.service import Service


class Restarts(msgspec.Struct, frozen=True, kw_only=True):
    """Restarts of one process.

    Attributes:
        count: Number of restarts since `up`.
        given_up: True if it stays down.
    """

    count: int = 0
    given_up: bool = False


class StackRecord(msgspec.Struct, kw_only=True):
    """Content of `stack.json`.

    Attributes:
        processes: Started processes, dead or alive.
        services: Their descriptions.
        ready: True if all served once.
        restarts: Restarts by process.
        gateways: Addresses of gateways by process.
    """

    bootstrap_servers: str
    flink_url: str
    processes: list[ProcessRecord] = []
    services: dict[str, Service] = {}
    ready: bool = False
    restarts: dict[str, Restarts] = {}
    restart_limits: RestartLimits = RestartLimits()
    gateways: dict[str, GatewayAddress] = {}


def path_of(folder: Path) -> Path:
    """Return the path."""
    return folder / "stack.json"


def read(folder: Path) -> StackRecord | None:
    """Return the record, or None without a stack.

    Raises:
        StackError: It cannot be read.
    """
    path = path_of(folder)
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackRecord)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise StackError(f"{path} cannot be read ({error}): end the processes it names, and remove it") from error


def write(folder: Path, record: StackRecord) -> None:
    """Replace the file."""
    path = path_of(folder)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    new.replace(path)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Exclude other changes of the stack; ends with the process."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
