"""Installation of the peers' own packages under `.tools`, at first use."""

import sys
from pathlib import Path

from anabranch.flink_job.errors import InstallationError
from bench.systems.flink import java_map
from bench.systems.registry import ENVIRONMENTS, JAVA_KINDS
from deploy.environments import EnvironmentFailed, environment
from deploy.jars import JarsError


class PeerMissing(Exception):
    """A peer cannot be set up on this machine and is skipped."""


def interpreter_of(kind: str) -> Path:
    """Install a system's packages and return its Python.

    Raises:
        PeerMissing: A package or jar is not available.
    """
    try:
        if kind in ENVIRONMENTS:
            name = ENVIRONMENTS[kind]
            return environment(f"peers/{name}", lock_of(name))
        if kind in JAVA_KINDS:
            java_map.bring()
    except (EnvironmentFailed, InstallationError, JarsError) as error:
        raise PeerMissing(f"{kind} cannot be set up on this machine: {error}") from error
    return Path(sys.executable)


def lock_of(name: str) -> Path:
    """Return the lock file of a peer's own Python environment."""
    return Path(__file__).parent / "serving" / f"{name}.lock"
