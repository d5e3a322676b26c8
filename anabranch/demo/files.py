"""The files that the demo streams."""

import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

#: Folders of the standard library that hold installed packages or compiled files.
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass
class FoundFile:
    """The files of a folder.

    Attributes:
        files: In the same order on every run.
        linked_folders: Links to folders, which are not followed: they may form a cycle.
        left_out: Files over the limit.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    unread_folders: int = 0
    linked_folders: int = 0
    left_out: int = 0


def standard_library() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def find_files(folder: Path | None, limit: int) -> FoundFile:
    """Find the files of a folder, at any depth.

    Args:
        folder: None for the standard library without installed packages.
        limit: Largest number of files; 0 for all.
    """
    found = FoundFile(folder or standard_library())

    def count_unread(_: OSError) -> None:
        found.unread_folders += 1

    for parent, folders, names in os.walk(found.folder, onerror=count_unread):
        if folder is None:
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
        folders.sort()
        found.linked_folders += sum((Path(parent) / name).is_symlink() for name in folders)
        found.files += [Path(parent) / name for name in sorted(names)]
    if limit and len(found.files) > limit:
        found.left_out = len(found.files) - limit
        del found.files[limit:]
    return found
