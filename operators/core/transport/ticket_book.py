"""The tickets of one attempt of a task."""

import struct
from contextlib import suppress

from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.transport.ticket import Ticket, decode_return


class TicketBook:
    """Issues tickets, and takes them back."""

    def __init__(self, token: bytes, host: bytes, port: int) -> None:
        self._address = token, host, port
        self._token = token
        self._targets: list[Credits] = []

    def add(self, credit: Credits) -> int:
        """Add an operator; return its number."""
        self._targets.append(credit)
        return len(self._targets) - 1

    @property
    def is_empty(self) -> bool:
        """True if no ticket is expected."""
        return not any(credit.under_way for credit in self._targets)

    @property
    def deaf(self) -> int:
        """Number of deaf readers."""
        return sum([credit.deaf for credit in self._targets])

    @property
    def way_ms(self) -> float:
        """Usual time of a ticket, at most."""
        return max([credit.way_ms for credit in self._targets])

    def issue(self, target: int, now_ms: float, avoid: int = -1, rows: int = 1) -> bytes:
        """Choose a reader, and return the encoded ticket."""
        number, reader = self._targets[target].send(now_ms, avoid, rows)
        return Ticket(reader, *self._address, target, number).encode()

    def take_back(self, datagram: bytes, at_ms: float) -> bool:
        """Take a ticket back; ignore noise and other attempts."""
        with suppress(struct.error):
            back = decode_return(datagram)
            if back.token == self._token and back.target < len(self._targets):
                self._targets[back.target].returned(back.number, back.reader, back.ran_ms, back.longest_ms, at_ms)
                return True
        return False

    def expire(self, now_ms: float) -> None:
        """Drop lost tickets."""
        for credit in self._targets:
            credit.expire(now_ms)
