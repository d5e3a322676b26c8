"""Transport of records between tasks, as messages or through shared memory.

    Sender.pack(record) --> message, or claim check + arena --> Receiver.redeem(message)

Claims need all readers on this host. If a writer has ended, its reader fails and Flink replays. Claims of other hosts
and too large records become FAILUREs.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.transport.claim_check import (
    TransportOptions,
    decode_claim,
    is_claim,
    lost,
    too_large,
)
from anabranch.operators.core.transport.ticket import Ticket, has_ticket, open_ticket
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport.memfd_arena import Mappings, MemfdArena, Presence, host_identity, is_present
from anabranch.operators.transport.ticket_returns import TicketReturns
from anabranch.schemas.limits import MAX_MESSAGE_BYTES
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.records import BatchRecord, ClaimableRecord
from anabranch.schemas.tensors import Buffer

#: Operators with a receiver.
INFER, AGGREGATE = "infer", "aggregate"

_LOOK_AGAIN_S = 0.1


def stage_receiver(model: ModelSpec, index: int) -> str:
    """Return the name of a stage's receiver."""
    return f"stage-{index}-{hashlib.sha256(f'{model.name}/{model.version}'.encode()).hexdigest()[:16]}"


class Sender:
    """Sender of one task to another operator.

    Args:
        to: Name of the `Receiver`.
        readers: Number of receiving tasks.
        issue: Returns the encoded ticket of the next record, given its rows.
    """

    def __init__(
        self,
        options: TransportOptions,
        task: TaskContext,
        to: str,
        readers: int,
        meter: Meter,
        issue: Callable[[int], bytes] | None = None,
    ) -> None:
        self._options = options
        self._meter = meter
        self._host = host_identity() if options.shares_memory else None
        self._unseen = [_name(options, to, reader, task) for reader in range(readers)]
        self._look_at_s = 0.0
        self._arena: MemfdArena | None = None
        self._attempt = task.attempt
        self._issue = issue

    def let_go(self) -> None:
        """Drop the arena."""
        self._arena = None

    def pack(self, record: ClaimableRecord, rows: int = 1) -> bytes:
        """Encode a record, or its FAILURE if too large."""
        parts = record.parts()
        size_bytes = sum(map(len, parts))
        if self._host is not None and self._options.is_claimable(size_bytes):
            arena = self._open_arena(self._host) if self._readers_are_here() else None
            claim = arena.put(parts, size_bytes) if arena is not None else None
            if claim is not None:
                self._meter.note_claim(size_bytes)
                return self._ticketed((claim.encode(record),), rows)
            self._meter.note_large_message()
        if size_bytes > MAX_MESSAGE_BYTES:
            return self._ticketed((too_large(record, size_bytes).encode(),), rows)
        return self._ticketed(parts, rows)

    def pack_batch(self, batch: BatchRecord) -> bytes:
        """Encode a BATCH as a message."""
        return self._ticketed(batch.parts())

    def _ticketed(self, parts: Sequence[Buffer], rows: int = 1) -> bytes:
        return b"".join(parts) if self._issue is None else b"".join((self._issue(rows), *parts))

    def _open_arena(self, host: bytes) -> MemfdArena | None:
        if self._arena is None:
            with suppress(OSError):
                self._arena = MemfdArena(self._options.arena_bytes, host, self._attempt)
        return self._arena

    def _readers_are_here(self) -> bool:
        if self._unseen and monotonic() >= self._look_at_s:
            self._unseen = [name for name in self._unseen if not is_present(name)]
            self._look_at_s = monotonic() + _LOOK_AGAIN_S
        return not self._unseen


class Receiver:
    """Receiver for any number of senders."""

    def __init__(self, options: TransportOptions, task: TaskContext, name: str, meter: Meter) -> None:
        self._meter = meter
        self._host = host_identity() if options.shares_memory else None
        self._mappings = Mappings()
        self._presence = Presence(_name(options, name, task.index, task)) if self._host else None
        self._attempt = task.attempt
        self._returns: TicketReturns | None = None
        self._ticket: Ticket | None = None
        self._began_s = 0.0

    def let_go(self) -> None:
        """Drop mappings and presence."""
        self._mappings, self._presence = Mappings(), None

    def begin(self) -> None:
        """Note the start of the run."""
        if self._ticket is not None:
            self._began_s = monotonic()

    def finish(self) -> None:
        """Return the record's ticket, unless it was passed on."""
        if self._ticket is not None:
            if self._returns is None:
                self._returns = TicketReturns()
            self._returns.send(self._after_run(self._ticket))
            self._ticket = None

    def pass_on(self, _: int = 1) -> bytes:
        """Return the encoded ticket for the next stage."""
        ticket, self._ticket = self._ticket, None
        return b"" if ticket is None else self._after_run(ticket).encode()

    def _after_run(self, ticket: Ticket) -> Ticket:
        return ticket.after((monotonic() - self._began_s) * 1000)

    def redeem(self, value: bytes) -> Buffer:
        """Return the encoded record or a FAILURE; a claimed record is a view.

        Raises:
            SegmentGone: The writer has ended.
        """
        message: Buffer = value
        if has_ticket(value):
            self._ticket, message = open_ticket(value)
            self._began_s = monotonic()
        if not is_claim(message):
            return message
        claim, head = decode_claim(message)
        if claim.host == self._host and claim.attempt == self._attempt:
            try:
                return self._mappings.read(claim)
            except OSError:
                pass  # Not allowed.
        self._meter.note_lost()
        return lost(head).encode()


def _name(options: TransportOptions, operator: str, index: int, task: TaskContext) -> str:
    return f"{options.job}-{task.execution}-{operator}-{index}-{task.attempt}"
