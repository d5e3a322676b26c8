"""What peers need beside this project's own environment: brought here when first asked for, and kept under `.tools`."""

import sys
from pathlib import Path

from anabranch.flink_job.errors import InstallationError
from bench.systems.flink import java_map
from bench.systems.registry import ENVIRONMENTS, JAVA_KINDS
from deploy.environments import EnvironmentFailed, environment
from deploy.jars import JarsError


class PeerMissing(Exception):
    """A peer cannot be set up on this machine, and is left out; the message says why."""


def interpreter_of(kind: str) -> Path:
    """The Python that a system starts with, once all that it needs is here.

    Raises:
        PeerMissing: Something cannot be had.
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
    """The lock file of a peer's own Python environment."""
    return Path(__file__).parent / "serving" / f"{name}.lock"
