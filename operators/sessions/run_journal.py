"""Notes of the runs of a process, in files that survive it, and the ledger of crashes that all processes share.

    <folder>/run-*        one for each concurrent run; its process holds a lock on it
             ledger.json  `CrashLedger`
             alone        locked by a row that runs alone

A task that opens reads the notes of ended processes: a run that was under way ended its process.
"""

import fcntl
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from time import monotonic, sleep, time
from uuid import uuid4

import msgspec

from anabranch.operators.core.crash_ledger import CrashLedger, Fills, Fingerprint, fingerprints
from anabranch.operators.sessions.file_lock import file_lock
from anabranch.schemas.limits import MIB
from anabranch.schemas.tensors import Array, array_from_raw, datatype_of, raw_size_bytes

_LOGGER = logging.getLogger("anabranch.crashes")
#: State and size of the head.
_NOTE = Struct("<B3xI")
_IDLE, _UNDER_WAY = 0, 1
_PAGE_BYTES = 64 * 1024
#: Of larger inputs a note holds digests.
_MOST_COPIED_BYTES = 64 * MIB
_ALONE_TIMEOUT_S = 60.0
_ALONE_PAUSE_S = 0.002
#: The operators of a process open together; a job waits longer before it restarts.
_REFRESH_S = 0.5


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The described inputs of a run; their bytes follow, or `digests` stand for them."""

    model: str
    units: int
    max_crashes: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    digests: tuple[Fingerprint, ...] = ()
    fills: tuple[tuple[int, float] | None, ...] = ()


class Note:
    """A file that says which run is under way."""

    __slots__ = ("_descriptor", "_head", "_size", "memory")

    def __init__(self, path: Path) -> None:
        # Readers would take an unlocked note for one of an ended process.
        made = path.with_name(f".{path.name}")
        self._head = b""
        self._descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(self._descriptor, 0, _PAGE_BYTES)
            self._size = _PAGE_BYTES
            self.memory = mmap.mmap(self._descriptor, _PAGE_BYTES)
            made.rename(path)
        except OSError:
            os.close(self._descriptor)
            made.unlink(missing_ok=True)
            raise

    def write(self, head: bytes, arrays: Sequence[Array], size_bytes: int) -> None:
        """Note a run.

        Raises:
            OSError: The disk is full.
        """
        if size_bytes > self._size:
            size_bytes += -size_bytes % _PAGE_BYTES
            # A store to an unallocated page of a full disk ends the process.
            os.posix_fallocate(self._descriptor, 0, size_bytes)
            self.memory.resize(size_bytes)
            self._size = size_bytes
        memory = self.memory
        at = len(head)
        if head is not self._head:
            memory[:at] = self._head = head
        for array in arrays:
            end = at + array.nbytes
            memory[at:end] = array  # type: ignore[call-overload]
            at = end
        memory[0] = _UNDER_WAY


class RunJournal:
    """Notes and ledger of a folder.

    Raises:
        OSError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = folder / "lock"
        self._free: list[Note] = []
        self._own: set[str] = set()
        self._refreshed_s = 0.0
        self.ledger = CrashLedger()

    def begin(self, head: bytes, arrays: Sequence[Array], size_bytes: int) -> Note:
        """Note a run; see `head_bytes`."""
        try:
            note = self._free.pop()
        except IndexError:
            name = f"run-{uuid4().hex}"
            self._own.add(name)
            note = Note(self._folder / name)
        try:
            note.write(head, arrays, size_bytes)
        except BaseException:
            self._free.append(note)
            raise
        return note

    def end(self, note: Note) -> None:
        """Note the end of a run."""
        note.memory[0] = _IDLE
        self._free.append(note)

    def refresh_if_old(self) -> None:
        """Refresh unless that was a moment ago."""
        if monotonic() - self._refreshed_s > _REFRESH_S:
            self.refresh()

    def refresh(self) -> None:
        """Count the crashes since the last call, of any process."""
        self._refreshed_s = monotonic()
        with file_lock(self._lock):
            ledger = self._read()
            before = ledger.encode()
            for path in self._folder.glob("run-*"):
                if path.name not in self._own:
                    self._collect(path, ledger)
            if ledger.encode() != before:
                self._write(ledger)
            self.ledger = ledger

    def forget(self, model: str, digest: str) -> None:
        """Note that rows have survived alone; on a full disk they run alone again."""
        with suppress(OSError), file_lock(self._lock):
            ledger = self._read()
            if ledger.note_survival(model, digest):
                self._write(ledger)
            self.ledger = ledger

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run while no other process runs suspects."""
        try:
            descriptor = os.open(self._folder / "alone", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            yield
            return
        try:
            end_s = monotonic() + _ALONE_TIMEOUT_S
            while monotonic() < end_s:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    sleep(_ALONE_PAUSE_S)
            yield
        finally:
            os.close(descriptor)

    def _collect(self, path: Path, ledger: CrashLedger) -> None:
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            try:
                _count(file.read(), ledger)
            except Exception:
                _LOGGER.exception("unreadable note %s of a run", path)
            path.unlink()

    def _read(self) -> CrashLedger:
        try:
            ledger = CrashLedger.decode((self._folder / "ledger.json").read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            return CrashLedger()
        ledger.expire(time() * 1000)
        return ledger

    def _write(self, ledger: CrashLedger) -> None:
        made = self._folder / ".ledger.json"
        made.write_bytes(ledger.encode())
        made.replace(self._folder / "ledger.json")


def head_bytes(
    model: str, arrays: Sequence[Array], units: int, max_crashes: int, fills: Fills = ()
) -> tuple[bytes, Sequence[Array], int]:
    """Return the head of a note, the arrays that follow it, and the size of both."""
    size_bytes = sum(array.nbytes for array in arrays)
    if size_bytes <= _MOST_COPIED_BYTES and all(array.dtype.kind not in "OUS" for array in arrays):
        inputs = tuple((datatype_of(array.dtype), array.shape) for array in arrays)
        head, following = Head(model, units, max_crashes, inputs, fills=tuple(fills)), arrays
    else:
        head, following = Head(model, units, max_crashes, digests=tuple(fingerprints(arrays, units, fills))), ()
        size_bytes = 0
    encoded = msgspec.msgpack.encode(head)
    return _NOTE.pack(_IDLE, len(encoded)) + encoded, following, _NOTE.size + len(encoded) + size_bytes


def _count(note: bytes, ledger: CrashLedger) -> None:
    state, head_size = _NOTE.unpack_from(note)
    if state != _UNDER_WAY:
        return
    at = _NOTE.size + head_size
    head = msgspec.msgpack.decode(note[_NOTE.size : at], type=Head)
    rows: Sequence[Fingerprint] = head.digests
    if not rows:
        arrays = []
        for datatype, shape in head.inputs:
            end = at + (raw_size_bytes(datatype, shape) or 0)
            arrays.append(array_from_raw(datatype, shape, note[at:end]))
            at = end
        rows = fingerprints(arrays, head.units, head.fills)
    ledger.note_crash(head.model, rows, time() * 1000)
    worst = max(
        ledger.counts[head.model][row.digest].crashes for row in rows if row.digest in ledger.counts[head.model]
    )
    _LOGGER.warning(
        "a process ended while model %s ran %d rows; crashes of a row: %d, limit %d",
        head.model,
        len(rows),
        worst,
        head.max_crashes,
    )


_journals: dict[Path, RunJournal | None] = {}
_opening = threading.Lock()


def journal_of(folder: Path) -> RunJournal | None:
    """Return this process's journal of a folder; None if the folder cannot be used."""
    with _opening:
        if folder not in _journals:
            try:
                _journals[folder] = RunJournal(folder)
            except OSError as error:
                _LOGGER.warning("no notes of runs, so a request may end its process again and again: %s", error)
                _journals[folder] = None
        journal = _journals[folder]
        if journal is not None:
            try:
                journal.refresh_if_old()
            except OSError as error:
                _LOGGER.warning("the notes of runs cannot be read: %s", error)
        return journal
