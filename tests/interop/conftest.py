"""An environment with public clients of the Open Inference Protocol, whose packages clash with PyFlink's."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
ENVIRONMENT = ROOT / ".tools" / "interop"


@pytest.fixture(scope="session")
def interop_python() -> Path:
    """The interpreter of that environment, which is made the first time and kept."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".complete"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    own_uv = ROOT / ".tools" / "uv" / "bin" / "uv"
    uv = str(own_uv) if own_uv.exists() else shutil.which("uv")
    if uv is None:
        pytest.fail("these tests need uv to make an environment of their own: run `make setup`")
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)],
        [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(LOCK)],
    ):
        subprocess.run(command, check=True, env=environment)
    stamp.write_text(digest)
    return python


@pytest.fixture(scope="session")
def run_there(interop_python: Path) -> Callable[..., None]:
    """Runs a script of this folder in that environment, isolated from this one."""

    def run(script: str, *arguments: str) -> None:
        path = Path(__file__).with_name(script)
        subprocess.run([str(interop_python), "-I", str(path), *arguments], check=True, timeout=100)

    return run
