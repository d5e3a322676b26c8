"""Errors of an import."""

from anabranch.schemas.errors import AnabranchError


class ImportFailed(AnabranchError):
    """Base of errors of an import."""

    code = "import_failed"


class UnknownSource(ImportFailed):
    """The source is not a model of a known framework."""

    code = "unknown_source"


class FrameworkMissing(ImportFailed):
    """The interpreter for the conversion lacks a package."""

    code = "framework_missing"


class NotConverted(ImportFailed):
    """The framework or its exporter refused the model."""

    code = "not_converted"


class NotEqual(ImportFailed):
    """The outputs of the ONNX model differ from those of the framework."""

    code = "not_equal"


class VersionThere(ImportFailed):
    """The repository already has this version of the model."""

    code = "version_there"
