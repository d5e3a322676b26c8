"""Ports on the loopback interface."""

from __future__ import annotations

import random
import socket

from anabranch.stack.errors import PortInUse, StackError

LOOPBACK = "127.0.0.1"

# Below the range from which systems take the ports of outgoing connections, so that none of those can take a port
# between our look and its use by the process that we start.
_FREE_PORTS = range(20_000, 32_000)
_TRIES = 200
_CONNECT_TIMEOUT_S = 0.5


def free_port() -> int:
    """Returns a port that nothing on this machine listens on."""
    for _ in range(_TRIES):
        port = random.choice(_FREE_PORTS)  # noqa: S311  (no secret: two sessions at once should seldom meet)
        if is_free(port):
            return port
    raise StackError(
        f"no free port between {_FREE_PORTS.start} and {_FREE_PORTS.stop}: stop some of what listens there"
    )


def is_free(port: int) -> bool:
    """Whether a process could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a process that has ended must not keep its port from the next.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # On all interfaces, for that also meets a server that listens on all of them.
            probe.bind(("", port))
        except OSError:
            return False
    return True


def claim(port: int, option: str) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        PortInUse: it is taken; the message names the option that changes it.
    """
    if port == 0:
        return free_port()
    if not is_free(port):
        raise PortInUse(port, option)
    return port


def answers(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        return probe.connect_ex((LOOPBACK, port)) == 0
