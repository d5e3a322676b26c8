"""Shared memory between the processes of one host, which the kernel frees with the last process that holds it.

    writer   an arena: a file without a name (memfd)       | slots | sequence, record | sequence, record | free ... |
    claim    process, descriptor, name, slot, offset ...   travels as a message; see `core.exchange`
    reader   opens /proc/PROCESS/fd/DESCRIPTOR, maps the   views over the record; when the last one is dropped, the
             arena once, and keeps the mapping             slot says so, and the writer uses the bytes again

Nothing has a name in a file system, so nothing is left behind and nothing needs to be swept: whoever dies, by `kill -9`
too, takes along what only it held. An arena is mapped once and used again and again: a fresh file for each
record would pay for every page of it each time (ADR 0014).
"""

import mmap
import os
import secrets
import socket
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from anabranch.operators.core.transport.claim_check import Claim
from anabranch.operators.core.transport.first_fit_allocator import FirstFitAllocator
from anabranch.operators.transport.memory_lease import lend
from anabranch.schemas.tensors import Buffer

NAME = "anabranch"
#: How many records of an arena may be under way.
SLOTS = 4096

_ALIGNMENT_BYTES = 64
_TAKEN, _DONE = b"\1", b"\2"
_DONE_CODE = _DONE[0]


class SegmentGone(Exception):
    """The process, or the attempt of the job, that wrote a record is no more, and the record with it.

    Flink is about to restart the job, or must: the checkpoint brings back what the record was made from.
    """


class MemfdArena:
    """Records that one task wrote and others of this host read; one thread's.

    The memory lives as long as this object, and as readers that have it mapped.

    Args:
        size_bytes: What records may take up together. Pages count once they are used.
        host: What `host_identity` gave.
        attempt: Of the job.
    """

    def __init__(self, size_bytes: int, host: bytes, attempt: int) -> None:
        self._name = secrets.token_bytes(16)
        self._file = os.memfd_create(f"{NAME}-{self._name.hex()}", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, SLOTS + size_bytes)
        self._mapped = mmap.mmap(self._file, SLOTS + size_bytes)
        self._extents = FirstFitAllocator(SLOTS, SLOTS + size_bytes, _ALIGNMENT_BYTES)
        self._taken: dict[int, tuple[int, int]] = {}
        self._slots = list(range(SLOTS))
        self._process = os.getpid()
        self._host = host
        self._attempt = attempt
        self._sequence = 0

    def put(self, parts: Sequence[Buffer], size_bytes: int) -> Claim | None:
        """Copies the parts of a record in, one behind the other; None where there is no room."""
        self._collect()
        offset = self._extents.take(_ALIGNMENT_BYTES + size_bytes) if self._slots else None
        if offset is None:
            return None
        slot = self._slots.pop()
        self._sequence += 1
        at = offset + _ALIGNMENT_BYTES
        with memoryview(self._mapped) as view:
            view[offset : offset + 8] = self._sequence.to_bytes(8, "little")
            for part in parts:
                view[at : at + len(part)] = part
                at += len(part)
        self._mapped[slot : slot + 1] = _TAKEN
        self._taken[slot] = (offset, _ALIGNMENT_BYTES + size_bytes)
        return Claim(
            self._attempt, self._process, self._file, self._host, self._name, slot, self._sequence, offset, size_bytes
        )

    @property
    def under_way(self) -> int:
        """Records that are not read yet."""
        self._collect()
        return len(self._taken)

    def _collect(self) -> None:
        slot = self._mapped.find(_DONE, 0, SLOTS)
        while slot >= 0:
            self._mapped[slot] = 0
            self._extents.give_back(*self._taken.pop(slot))
            self._slots.append(slot)
            slot = self._mapped.find(_DONE, slot + 1, SLOTS)


class Mappings:
    """The arenas that one task reads from; they are mapped until this object is dropped, and all views with it."""

    def __init__(self) -> None:
        self._mapped: dict[bytes, mmap.mmap] = {}

    def read(self, claim: Claim) -> memoryview:
        """A record, as it was written; its bytes are the writer's again when the last view of them is dropped.

        Raises:
            SegmentGone: There is no such record (any more).
            OSError: This process may not open it.
        """
        mapped = self._mapped.get(claim.arena)
        if mapped is None:
            mapped = self._mapped[claim.arena] = _map(claim)
        at, slot = claim.offset, claim.slot
        is_there = mapped[slot : slot + 1] == _TAKEN and mapped[at : at + 8] == claim.sequence.to_bytes(8, "little")
        if not is_there:
            raise SegmentGone(f"record {claim.sequence} of arena {claim.arena.hex()} was read before")
        return lend(mapped, at + _ALIGNMENT_BYTES, claim.size_bytes, _finish, mapped, slot)


class Presence:
    """Says that a reader is on this host, for as long as this object lives: the kernel takes the name back.

    Args:
        name: The reader's; see `is_present`.
    """

    def __init__(self, name: str) -> None:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        weakref.finalize(self, bound.close)
        # Where the name is taken, a reader that had this one's place is still there: on this host, as it says.
        with suppress(OSError):
            bound.bind(_address(name))


def is_present(name: str) -> bool:
    """Whether a reader of that name is on this host: one that sees the same processes, and may open their files."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(_address(name)) == 0


@lru_cache(maxsize=1)
def host_identity() -> bytes | None:
    """What the processes of one host have in common that can open each other's files; None where there is no way.

    Containers that do not share their processes' names are different hosts.
    """
    try:
        # A process whose files others may not open is not the owner of its own folder.
        if not hasattr(os, "memfd_create") or Path("/proc/self/fd").stat().st_uid != os.geteuid():
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = (boot, Path("/proc/self/ns/pid").stat().st_ino, os.geteuid())
    except OSError:
        return None
    return sha256(repr(known).encode()).digest()[:16]


def _address(name: str) -> bytes:
    """An abstract address: the name of a socket that is no file."""
    return b"\0" + f"{NAME}-{(host_identity() or b'').hex()}-{name}".encode()


def _map(claim: Claim) -> mmap.mmap:
    path = f"/proc/{claim.process}/fd/{claim.file}"
    try:
        # Whatever else has the number by now must not be opened: it may be a pipe.
        if not os.readlink(path).startswith(f"/memfd:{NAME}-{claim.arena.hex()}"):  # noqa: PTH115 - no path, but a name
            raise SegmentGone(f"arena {claim.arena.hex()} is closed")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise SegmentGone(f"process {claim.process} is gone, and arena {claim.arena.hex()} with it") from None
    try:
        return mmap.mmap(file, 0)
    finally:
        os.close(file)


def _finish(mapped: mmap.mmap, slot: int) -> None:
    mapped[slot] = _DONE_CODE
