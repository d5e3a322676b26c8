"""An environment with public clients of the Open Inference Protocol; their packages clash with PyFlink's."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.environments import environment

LOCK = Path(__file__).with_name("requirements.lock")


@pytest.fixture(scope="session")
def interop_python() -> Path:
    """Returns the interpreter of that environment."""
    return environment("interop", LOCK)


@pytest.fixture(scope="session")
def run_there(interop_python: Path) -> Callable[..., None]:
    """Returns a function that runs a script of this folder in that environment."""

    def run(script: str, *arguments: str) -> None:
        path = Path(__file__).with_name(script)
        subprocess.run([str(interop_python), "-I", str(path), *arguments], check=True, timeout=250)

    return run


@pytest.fixture(scope="session")
def schemathesis_python() -> Path:
    """Returns the interpreter of Schemathesis's environment."""
    return environment("schemathesis", LOCK.with_name("schemathesis.lock"))
