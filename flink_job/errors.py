"""Errors of configuration and installation; standard library only."""

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
    """Some models must be cut first."""

    code = "stages_not_prepared"

    def __init__(self, repository: Path, models: Sequence[UnpreparedModel]) -> None:
        missing = ", ".join(f"{model.label} into {model.stages} stages" for model in models)
        super().__init__(
            f"{repository} has models that are not cut yet: {missing}; "
            f"run `anabranch prepare --model-repository {repository}`"
        )
        self.models = tuple(models)


class StateUnusable(ConfigError):
    """A checkpoint, a savepoint or their directory cannot be read."""

    code = "state_unusable"


class ModelStoreUnusable(ConfigError):
    """The store of models cannot be read or written."""

    code = "model_store_unusable"


class JobFailed(AnabranchError):
    """The job failed or was cancelled, or Flink refused an operation on it."""

    code = "job_failed"


class InstallationError(AnabranchError):
    """A part is missing on this machine."""

    code = "installation_error"


class JavaNotFound(InstallationError):
    """No Java 17 or 21 was found."""

    code = "java_not_found"


class FlinkNotFound(InstallationError):
    """This environment has no apache-flink package."""

    code = "flink_not_found"


class JarsMissing(InstallationError):
    """Jars of the Kafka connector or broker are missing."""

    code = "jars_missing"


class CompilationFailed(InstallationError):
    """The job's Java does not compile."""

    code = "compilation_failed"


class LibpythonNotFound(InstallationError):
    """This Python has no shared library, which thread mode needs."""

    code = "libpython_not_found"
