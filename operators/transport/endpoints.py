"""One seam for all records between tasks: what an `Sender` packs, an `Receiver` at the other end gives back.

    writer: pack(record) --> message, or claim check + arena --> redeem(message): reader

A claim is only used once every reader that Flink may choose is seen on this host. If one turns up that cannot be
redeemed, nothing is lost:

- Its writer has died, or its attempt of the job is over: the reader's task fails, Flink restarts the job as it must,
  and what is replayed is computed again. State never holds a claim, and no checkpoint does: barriers are aligned.
- It comes from another host: its rows become a FAILURE, and their request is answered with an error. (An OPENING has no
  rows: only the original, for a dead letter, is missing then.)

So do the rows of a record that is too large for a message. Where a process gets no memory to share, it sends messages.

In thread mode PyFlink may hold an operator of a failed attempt for long: the tasks of the next attempt, in the same
process, let go of what the earlier ones held.
"""

import hashlib
import threading
from contextlib import suppress
from time import monotonic
from weakref import WeakSet

from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.transport.claim_check import (
    MAX_MESSAGE_BYTES,
    TransportOptions,
    decode_claim,
    is_claim,
    lost,
    too_large,
)
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport.memfd_arena import Mappings, MemfdArena, Presence, host_identity, is_present
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.records import Record
from anabranch.schemas.tensors import Buffer

#: Operators with an inbox.
INFER, AGGREGATE = "infer", "aggregate"

_LOOK_AGAIN_S = 0.1

_lock = threading.Lock()
_opened: "WeakSet[Sender | Receiver]" = WeakSet()


def stage_receiver(model: ModelSpec, index: int) -> str:
    """The inbox of one stage of a model."""
    return f"stage-{index}-{hashlib.sha256(f'{model.name}/{model.version}'.encode()).hexdigest()[:16]}"


class Sender:
    """The records of one task for another operator.

    Args:
        task: The writer's.
        to: The name of the reading operator's `Receiver`.
        readers: How many tasks that operator has.
        meter: Counts claims, and large messages.
    """

    def __init__(self, options: TransportOptions, task: TaskContext, to: str, readers: int, meter: Meter) -> None:
        self._options = options
        self._meter = meter
        self._host = host_identity() if options.shares_memory else None
        self._unseen = [_name(options, to, reader, task.attempt) for reader in range(readers)]
        self._look_at_s = 0.0
        self._arena: MemfdArena | None = None
        self.job, self.attempt = options.job, task.attempt
        _replace_earlier(self)

    def let_go(self) -> None:
        """Drops the arena: no task of this attempt runs any more."""
        self._arena = None

    def pack(self, record: Record) -> bytes:
        """What travels; `Receiver.redeem` makes a record of it, or what is left of one that is too large."""
        parts = record.parts()
        size_bytes = sum(map(len, parts))
        if self._host is not None and self._options.is_claimable(size_bytes):
            arena = self._open_arena(self._host) if self._readers_are_here() else None
            claim = arena.put(parts, size_bytes) if arena is not None else None
            if claim is not None:
                self._meter.note_claim(size_bytes)
                return claim.encode(record)
            self._meter.note_large_message()
        if size_bytes > MAX_MESSAGE_BYTES:
            return too_large(record, size_bytes).encode()
        return b"".join(parts)

    def _open_arena(self, host: bytes) -> MemfdArena | None:
        if self._arena is None:
            with suppress(OSError):  # no descriptor, no memory, or the container forbids it
                self._arena = MemfdArena(self._options.arena_bytes, host, self.attempt)
        return self._arena

    def _readers_are_here(self) -> bool:
        if self._unseen and monotonic() >= self._look_at_s:
            self._unseen = [name for name in self._unseen if not is_present(name)]
            self._look_at_s = monotonic() + _LOOK_AGAIN_S
        return not self._unseen


class Receiver:
    """The records that one task gets; they may come from any number of outboxes.

    Args:
        task: The reader's.
        name: Of the reading operator.
        meter: Counts records that were lost.
    """

    def __init__(self, options: TransportOptions, task: TaskContext, name: str, meter: Meter) -> None:
        self._meter = meter
        self._host = host_identity() if options.shares_memory else None
        self._mappings = Mappings()
        self._presence = Presence(_name(options, name, task.index, task.attempt)) if self._host else None
        self.job, self.attempt = options.job, task.attempt
        _replace_earlier(self)

    def let_go(self) -> None:
        """Drops all mappings, and is seen no more: no task of this attempt runs any more."""
        self._mappings, self._presence = Mappings(), None

    def redeem(self, message: bytes) -> Buffer:
        """The encoded record; what is left of it, if it cannot be had here.

        Of a claim it is a view: whatever goes into state must be a copy.

        Raises:
            SegmentGone: The writer is gone, so that the job has to be restarted.
        """
        if not is_claim(message):
            return message
        claim, head = decode_claim(message)
        if claim.host == self._host and claim.attempt == self.attempt:
            try:
                return self._mappings.read(claim)
            except OSError:
                pass  # may not be opened, whatever the reason
        self._meter.note_lost()
        return lost(head).encode()


def _replace_earlier(opened: Sender | Receiver) -> None:
    with _lock:
        for other in list(_opened):
            if other.job == opened.job and other.attempt < opened.attempt:
                other.let_go()
        _opened.add(opened)


def _name(options: TransportOptions, operator: str, index: int, attempt: int) -> str:
    return f"{options.job}-{operator}-{index}-{attempt}"
