"""Separate Python environments for packages that conflict with PyFlink's."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class EnvironmentFailed(Exception):
    """An environment could not be made."""


def environment(name: str, lock: Path) -> Path:
    """Return the interpreter of `.tools/NAME`, made again after each change of its lock file.

    Raises:
        EnvironmentFailed: uv is missing, or a package cannot be installed.
    """
    folder = ROOT / ".tools" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Several processes of a test run may want it at once.
    with folder.with_name(f"{folder.name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return _complete(name, lock, folder)


def _complete(name: str, lock: Path, folder: Path) -> Path:
    python, stamp = folder / "bin" / "python", folder / ".complete"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    own_uv = ROOT / ".tools" / "uv" / "bin" / "uv"
    uv = str(own_uv) if own_uv.exists() else shutil.which("uv")
    if uv is None:
        raise EnvironmentFailed(f"cannot make the environment of {name}: uv was not found; run `make setup`")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(lock)],
    ):
        done = subprocess.run(
            command,
            env=os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EnvironmentFailed(f"cannot make the environment of {name}: {done.stderr.strip()}")
    stamp.write_text(digest)
    return python
