"""Ports on the loopback interface."""

from __future__ import annotations

import random
import socket

from anabranch.stack.errors import PortInUse, StackError

LOOPBACK = "127.0.0.1"

# Below the range of outgoing connections, which could take a port before its use.
_FREE_PORTS = range(20_000, 32_000)
_TRIES = 200
_CONNECT_TIMEOUT_S = 0.5


def free_port() -> int:
    """Return an unused port."""
    for _ in range(_TRIES):
        port = random.choice(_FREE_PORTS)  # noqa: S311 - not a secret
        if is_free(port):
            return port
    raise StackError(f"no free port between {_FREE_PORTS.start} and {_FREE_PORTS.stop}: stop servers that listen there")


def is_free(port: int) -> bool:
    """Return true if a process could listen on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Ignores closed connections.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Finds servers on all interfaces.
            probe.bind(("", port))
        except OSError:
            return False
    return True


def claim(port: int, option: str) -> int:
    """Return the port, or a free one for 0.

    Raises:
        PortInUse: It is taken.
    """
    if port == 0:
        return free_port()
    if not is_free(port):
        raise PortInUse(port, option)
    return port


def prefer(port: int) -> int:
    """Return the port, or a free one if it is taken."""
    return port if is_free(port) else free_port()


def answers(port: int) -> bool:
    """Return true if a server accepts connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        return probe.connect_ex((LOOPBACK, port)) == 0
