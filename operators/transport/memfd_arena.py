"""Shared memory of one host's processes; the kernel frees it with the last one (ADR 0014).

writer   memfd: | slots | sequence, record | sequence, record | free ... |
claim    process, descriptor, slot, offset ...; see `core.transport.claim_check`
reader   maps /proc/PROCESS/fd/DESCRIPTOR; the last view of a record frees its slot
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
#: Unread records of an arena.
SLOTS = 4096

_ALIGNMENT_BYTES = 64
_TAKEN, _DONE = b"\1", b"\2"
_DONE_CODE = _DONE[0]


class SegmentGone(Exception):
    """A record's writer has ended: Flink must restart the job."""


class MemfdArena:
    """Memory of one writer, kept by this object and readers.

    Args:
        size_bytes: Bound of all records.
        host: Result of `host_identity`.
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
        """Copy a record; return None without room."""
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
        """Number of unread records."""
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
    """Mapped arenas of one reading task."""

    def __init__(self) -> None:
        self._mapped: dict[bytes, mmap.mmap] = {}

    def read(self, claim: Claim) -> memoryview:
        """Return a record's view, whose end frees the memory.

        Raises:
            SegmentGone: The record is gone.
            OSError: It cannot be opened.
        """
        mapped = self._mapped.get(claim.arena)
        if mapped is None:
            mapped = self._mapped[claim.arena] = _map(claim)
        at, slot = claim.offset, claim.slot
        is_there = mapped[slot : slot + 1] == _TAKEN and mapped[at : at + 8] == claim.sequence.to_bytes(8, "little")
        if not is_there:
            raise SegmentGone(f"record {claim.sequence} of arena {claim.arena.hex()} is gone: Flink restarts the job")
        return lend(mapped, at + _ALIGNMENT_BYTES, claim.size_bytes, _finish, mapped, slot)


class Presence:
    """Sign of a reader on this host, for its lifetime."""

    def __init__(self, name: str) -> None:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        weakref.finalize(self, bound.close)
        with suppress(OSError):  # An earlier reader has it.
            bound.bind(_address(name))


def is_present(name: str) -> bool:
    """Tell whether a reader is present."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(_address(name)) == 0


@lru_cache(maxsize=1)
def host_identity() -> bytes | None:
    """Return a digest of the host; None without memfd or access to /proc.

    Processes with equal digests can open each other's arenas.
    """
    try:
        if not hasattr(os, "memfd_create") or Path("/proc/self/fd").stat().st_uid != os.geteuid():
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = (boot, Path("/proc/self/ns/pid").stat().st_ino, os.geteuid())
    except OSError:
        return None
    return sha256(repr(known).encode()).digest()[:16]


def _address(name: str) -> bytes:
    """Return an abstract socket address; a name of any length fits its 108 bytes."""
    digest = sha256((host_identity() or b"") + name.encode()).hexdigest()
    return b"\0" + f"{NAME}-{digest}".encode()


def _map(claim: Claim) -> mmap.mmap:
    path = f"/proc/{claim.process}/fd/{claim.file}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{NAME}-{claim.arena.hex()}"):  # noqa: PTH115 - not a path
            raise SegmentGone(f"arena {claim.arena.hex()} is closed: Flink restarts the job")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise SegmentGone(
            f"process {claim.process} of arena {claim.arena.hex()} has ended: Flink restarts the job"
        ) from None
    try:
        return mmap.mmap(file, 0)
    finally:
        os.close(file)


def _finish(mapped: mmap.mmap, slot: int) -> None:
    mapped[slot] = _DONE_CODE
