"""Errors of an import."""

from anabranch.schemas.errors import AnabranchError


class ImportFailed(AnabranchError):
    """Base of import errors."""

    code = "import_failed"


class UnknownSource(ImportFailed):
    """No known framework wrote the source."""

    code = "unknown_source"


class FrameworkMissing(ImportFailed):
    """The interpreter lacks a package."""

    code = "framework_missing"


class NotConverted(ImportFailed):
    """The framework or its exporter refused the model."""

    code = "not_converted"


class NotEqual(ImportFailed):
    """The outputs of model and framework differ."""

    code = "not_equal"


class VersionThere(ImportFailed):
    """The repository already has this version."""

    code = "version_there"


class ExportIncomplete(ImportFailed):
    """An exported folder lacks a file, or has what no ready step does."""

    code = "export_incomplete"
