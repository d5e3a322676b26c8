"""Processes of a stack, and those that hold arenas of shared memory, by `/proc`."""

import re
from collections.abc import Iterable
from pathlib import Path

import psutil

_NAME = re.compile(r"memfd:anabranch-([0-9a-f]{32})")


def arenas(processes: Iterable[int] | None = None) -> dict[str, set[int]]:
    """Returns the name of each arena, and the processes that have it open or mapped.

    Args:
        processes: Ids to search; all by default.
    """
    folders = (
        [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        if processes is None
        else [Path("/proc", str(process)) for process in processes]
    )
    found: dict[str, set[int]] = {}
    for folder in folders:
        for name in _names(folder):
            found.setdefault(name, set()).add(int(folder.name))
    return found


def processes_of(folder: Path) -> list[int]:
    """Returns all processes of the stack or cluster of a folder, orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ANABRANCH_PROCESS", "").startswith(str(folder)):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    try:
        names.update(_NAME.findall((folder / "maps").read_text()))
        for file in (folder / "fd").iterdir():
            try:
                names.update(_NAME.findall(str(file.readlink())))
            except FileNotFoundError:
                continue  # closed meanwhile
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        pass  # not ours, or gone
    return names
