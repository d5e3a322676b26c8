"""What peers need beside this project's own environment: brought here when first asked for, and kept under `.tools`."""

import sys
from pathlib import Path

from anabranch.flink_job.errors import InstallationError
from bench.peers import java_flink
from bench.subjects import ENVIRONMENTS, JAVA_KINDS
from deploy.environments import EnvironmentFailed, environment
from deploy.jars import JarsError


class PeerMissing(Exception):
    """A peer cannot be set up on this machine, and is left out; the message says why."""


def interpreter_of(kind: str) -> Path:
    """The Python that a subject starts with, once all that it needs is here.

    Raises:
        PeerMissing: Something cannot be had.
    """
    try:
        if kind in ENVIRONMENTS:
            name = ENVIRONMENTS[kind]
            return environment(f"peers/{name}", Path(__file__).with_name(f"{name}.lock"))
        if kind in JAVA_KINDS:
            java_flink.bring()
    except (EnvironmentFailed, InstallationError, JarsError) as error:
        raise PeerMissing(f"{kind} cannot be set up on this machine: {error}") from error
    return Path(sys.executable)
