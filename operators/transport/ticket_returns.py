"""Returns tickets to their senders by UDP."""

import logging
import secrets
import select
import socket
import struct
import weakref
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, time

from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.transport.ticket import RETURN_BYTES, Ticket
from anabranch.operators.core.transport.ticket_book import TicketBook

_LOGGER = logging.getLogger("anabranch.exchange")

_RECEIVE_BUFFER = 1 << 20
#: SO_TIMESTAMPNS: datagrams wait while the task works.
_TIMESTAMPS = 35
_TIMESPEC = struct.Struct("@qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
_EXPIRE_EVERY_MS = 1_000.0
#: Longest wait for a ticket, in usual ways; its limits.
_PATIENCE, _LEAST_PATIENCE_MS, _MOST_PATIENCE_MS = 2.0, 50.0, 10_000.0
#: No host (RFC 5737): the way there shows the own address.
_ELSEWHERE = ("192.0.2.1", 9)


class TicketDesk:
    """The tickets of one task, and their socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        weakref.finalize(self, self._socket.close)
        self._socket.setblocking(False)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
        _bind(self._socket)
        host, port = self._socket.getsockname()
        self._book = TicketBook(secrets.token_bytes(8), socket.inet_aton(host), port)
        self._expire_at_ms = 0.0
        self._waits_since_s: float | None = None
        self._is_deaf = False

    def let_go(self) -> None:
        """Close it."""
        self._socket.close()

    def add(self, credit: Credits) -> int:
        """See `TicketBook`."""
        return self._book.add(credit)

    def issue(self, target: int, rows: int = 1, avoid: int = -1) -> bytes:
        """See `TicketBook`."""
        return self._book.issue(target, time() * 1000, avoid, rows)

    def collect(self) -> bool:
        """Take back tickets; return False for none."""
        if self._book.is_empty:
            return False
        came = False
        while True:
            try:
                datagram, ancillary, _, _ = self._socket.recvmsg(RETURN_BYTES + 1, _ANCILLARY_BYTES)
            except OSError:  # None, or the task ended.
                break
            if self._book.take_back(datagram, _time_of(ancillary)):
                came, self._waits_since_s = True, None
        now_ms = time() * 1000
        if now_ms >= self._expire_at_ms:
            self._expire_at_ms = now_ms + _EXPIRE_EVERY_MS
            self._book.expire(now_ms)
            self._report()
        return came

    def wait(self, timeout_ms: float) -> bool:
        """Wait for tickets; return False if none came for twice their usual way."""
        poll = select.poll()
        with suppress(OSError, ValueError):  # The task ended.
            poll.register(self._socket, select.POLLIN)
        poll.poll(timeout_ms)
        if self.collect():
            return True
        now_s = monotonic()
        if self._waits_since_s is None:
            self._waits_since_s = now_s - timeout_ms / 1000
        patience_ms = min(max(_PATIENCE * self._book.way_ms, _LEAST_PATIENCE_MS), _MOST_PATIENCE_MS)
        if (now_s - self._waits_since_s) * 1000 < patience_ms:
            return True
        self._waits_since_s = None
        return False

    def _report(self) -> None:
        deaf = self._book.deaf
        if deaf and not self._is_deaf:
            _LOGGER.warning(
                "no report came back from %d readers of the exchange: let UDP pass between TaskManagers, "
                "or set exchange.credits to 'off'",
                deaf,
            )
        self._is_deaf = bool(deaf)


class TicketReturns:
    """The socket of a reader."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        weakref.finalize(self, self._socket.close)
        self._socket.setblocking(False)

    def send(self, ticket: Ticket) -> None:
        """Return a ticket."""
        with suppress(OSError):
            self._socket.sendto(ticket.encode_return(), (socket.inet_ntoa(ticket.host), ticket.port))


def _bind(own: socket.socket) -> None:
    """Bind to the address of the host's name; if that is a loopback or of another host, of the way to others."""
    with suppress(OSError):
        if not (named := socket.gethostbyname(socket.gethostname())).startswith("127."):
            own.bind((named, 0))
            return
    address = "127.0.0.1"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_ELSEWHERE)
        address = str(probe.getsockname()[0])
    own.bind((address, 0))


def _time_of(ancillary: Sequence[tuple[int, int, bytes]]) -> float:
    for _, kind, data in ancillary:
        if kind == _TIMESTAMPS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return float(seconds * 1000 + nanoseconds / 1e6)
    return time() * 1000
