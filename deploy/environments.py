"""Environments beside the project's own, for packages that clash with PyFlink's: made from a lock file, and kept."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class EnvironmentFailed(Exception):
    """An environment could not be made; the message says why."""


def environment(name: str, lock: Path) -> Path:
    """Returns the interpreter of `.tools/NAME`, which holds what a lock file says; it is made when that changes.

    Raises:
        EnvironmentFailed: There is no uv, or a package cannot be installed here.
    """
    folder = ROOT / ".tools" / name
    python, stamp = folder / "bin" / "python", folder / ".complete"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    own_uv = ROOT / ".tools" / "uv" / "bin" / "uv"
    uv = str(own_uv) if own_uv.exists() else shutil.which("uv")
    if uv is None:
        raise EnvironmentFailed(f"{name} needs uv to make an environment of its own: run `make setup`")
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
            raise EnvironmentFailed(f"{name} has no environment of its own: {done.stderr.strip()}")
    stamp.write_text(digest)
    return python
