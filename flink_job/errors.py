"""Errors of the configuration and of the installation. Standard library only: `make setup` imports it first."""

from anabranch.schemas.errors import AnabranchError


class ConfigError(AnabranchError):
    """The configuration cannot be used; the message names the key and the reason."""

    code = "config_error"


class InstallationError(AnabranchError):
    """Something that Anabranch needs is not on this machine; the message says what to do."""

    code = "installation_error"


class JavaNotFound(InstallationError):
    """There is no Java that Flink runs on."""

    code = "java_not_found"


class FlinkNotFound(InstallationError):
    """This environment has no Flink distribution."""

    code = "flink_not_found"


class JarsMissing(InstallationError):
    """The jars of the Kafka connector or of the broker are not there."""

    code = "jars_missing"


class CompilationFailed(InstallationError):
    """Our Java does not fit the Flink or the Kafka connector that is here."""

    code = "compilation_failed"


class LibpythonNotFound(InstallationError):
    """Thread mode cannot work, for there is no shared libpython to load into the JVM."""

    code = "libpython_not_found"
