"""Logs of the local stack's processes.

    broker.log  job-manager.log  task-manager-1.log    written by the JVMs' loggers
    broker.log.1                                       rotated
    *.out                                              standard output

An entry starts at a line with a time or a level. Other lines, such as a traceback, continue it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from anabranch.stack.errors import NotRunning, StackError

_SUFFIXES = (".log", ".out")
_ENTRY_START = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d|\[?(?:DEBUG|INFO|WARN|WARNING|ERROR|FATAL|CRITICAL)\b")
_ENTRY_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[,.]?\d*")
_ERROR_LEVEL = re.compile(r"\b(?:ERROR|FATAL|CRITICAL)\b")
_TRACEBACK = "Traceback (most recent call last)"
#: The level comes before the logger's name; messages may hold the word, too.
_LEVEL_CHARACTERS = 40
#: Errors are searched in this part of the end of each file.
_SEARCHED_BYTES = 4 * 1024 * 1024


class LogEntry(NamedTuple):
    """One or more lines, and the process that wrote them."""

    process: str
    text: str


def log_files(folder: Path, processes: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Return the log files of each process, by name.

    Args:
        processes: Restricts the result to these processes.

    Raises:
        NotRunning: There are no logs.
        StackError: A process has no log.
    """
    found: dict[str, list[Path]] = {}
    for path in _paths(folder):
        found.setdefault(path.stem, []).append(path)
    if not found:
        raise NotRunning(f"no logs in {folder}: start a stack with `anabranch up`")
    for process in processes:
        if process not in found:
            raise StackError(f"unknown process {process!r}; available: {', '.join(found)}")
    return {process: found[process] for process in processes or found}


def read_errors(files: dict[str, list[Path]], limit: int | None = None) -> list[LogEntry]:
    """Return the last error entries of each process, without repetitions.

    Args:
        files: Result of `log_files`.
        limit: Largest number of each process.
    """
    errors = []
    for process, paths in files.items():
        latest: dict[str, str] = {}
        for text in reversed([entry for path in paths for entry in _entries(_end_of(path))]):
            if _is_error(text):
                latest.setdefault(_ENTRY_TIME.sub("", text, count=1), text)
        errors += [LogEntry(process, text) for text in reversed([*latest.values()][:limit])]
    return errors


def read_tails(files: dict[str, list[Path]], lines: int) -> list[LogEntry]:
    """Return the last lines of each process, from its `.out` if its `.log` is empty."""
    tails = []
    for process, paths in files.items():
        texts = [text for path in paths if (text := _end_of(path).strip())]
        last = texts[0].splitlines()[-lines:] if texts and lines else []
        tails += [LogEntry(process, line) for line in last]
    return tails


class LogFollower:
    """Reads lines that are added to logs, through rotation, and from files that appear later."""

    def __init__(self, folder: Path, processes: Sequence[str] = (), *, errors_only: bool = False) -> None:
        """Start at the present ends of the files; see `log_files`."""
        self._folder = folder
        self._processes = frozenset(processes)
        self._errors_only = errors_only
        self._files: dict[Path, _FollowedFile] = {}
        for path in self._paths():
            self._files[path] = _FollowedFile(path, from_end=True)

    def read(self) -> Iterator[LogEntry]:
        """Yield the complete lines since the last call."""
        for path in self._paths():
            if path not in self._files:
                self._files[path] = _FollowedFile(path)
        for path, file in sorted(self._files.items()):
            for line in file.read():
                if not self._errors_only or file.in_error(line):
                    yield LogEntry(path.stem, line)

    def _paths(self) -> Iterable[Path]:
        return [path for path in _paths(self._folder) if not self._processes or path.stem in self._processes]


class _FollowedFile:
    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._file = _opened(path)
        self._partial = b""
        self._is_error = False
        if from_end and self._file:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> Iterator[str]:
        """Yield the complete lines since the last call."""
        if self._file is None:
            self._file = _opened(self._path)
        elif os.fstat(self._file.fileno()).st_size < self._file.tell():
            # Truncated in place.
            self._file.seek(0)
            self._partial = b""
        yield from self._added()
        if self._file and not self._is_current(self._file):
            # Rotated. The process may have written to the old file since.
            yield from self._added()
            self._file.close()
            self._partial = b""
            self._file = _opened(self._path)
            yield from self._added()

    def in_error(self, line: str) -> bool:
        """Return true if the next line belongs to an error entry."""
        if _ENTRY_START.match(line):
            self._is_error = _has_error_level(line)
        elif line.startswith(_TRACEBACK):
            self._is_error = True
        return self._is_error

    def _is_current(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except OSError:
            return False

    def _added(self) -> Iterator[str]:
        if self._file is None:
            return
        *lines, self._partial = (self._partial + self._file.read()).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:
        return None


def _paths(folder: Path) -> list[Path]:
    return sorted(path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}"))


def _entries(text: str) -> Iterator[str]:
    entry: list[str] = []
    for line in text.splitlines():
        if entry and _ENTRY_START.match(line):
            yield "\n".join(entry)
            entry = []
        entry.append(line)
    if entry:
        yield "\n".join(entry)


def _is_error(entry: str) -> bool:
    return _has_error_level(entry) or entry.startswith(_TRACEBACK) or f"\n{_TRACEBACK}" in entry


def _has_error_level(line: str) -> bool:
    return bool(_ERROR_LEVEL.search(line[:_LEVEL_CHARACTERS].partition("\n")[0]))


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SEARCHED_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
