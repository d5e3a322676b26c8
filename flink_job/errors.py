"""Errors of the configuration and of the installation. Standard library only: `make setup` imports it first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anabranch.schemas.errors import AnabranchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anabranch.flink_job.model_repository.stages import UnpreparedModel


class ConfigError(AnabranchError):
    """The configuration cannot be used."""

    code = "config_error"


class StagesNotPrepared(ConfigError):
    """Models of the repository must be cut before they can be served.

    Attributes:
        models: These models.
    """

    code = "stages_not_prepared"

    def __init__(self, repository: Path, models: Sequence[UnpreparedModel]) -> None:
        missing = ", ".join(f"{model.label} into {model.stages} stages" for model in models)
        super().__init__(
            f"{repository} has models that are not cut yet: {missing}; "
            f"run `anabranch prepare --model-repository {repository}`"
        )
        self.models = tuple(models)


class InstallationError(AnabranchError):
    """A part that Anabranch needs is missing on this machine."""

    code = "installation_error"


class JavaNotFound(InstallationError):
    """No Java 17 or 21 was found."""

    code = "java_not_found"


class FlinkNotFound(InstallationError):
    """This environment has no apache-flink package."""

    code = "flink_not_found"


class JarsMissing(InstallationError):
    """The jars of the Kafka connector or of the broker are missing."""

    code = "jars_missing"


class CompilationFailed(InstallationError):
    """The job's Java does not compile against the installed Flink and Kafka connector."""

    code = "compilation_failed"


class LibpythonNotFound(InstallationError):
    """This Python has no shared library that thread mode could load into the JVM."""

    code = "libpython_not_found"
