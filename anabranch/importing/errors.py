"""What can go wrong with an import.

    ImportFailed
    ├── UnknownSource       nothing that can be imported is there
    ├── FrameworkMissing    the interpreter lacks PyTorch, or TensorFlow
    ├── NotConverted        the framework's exporter refused the model
    ├── NotEqual            the ONNX model answers otherwise than the framework
    └── VersionThere        the repository has this version already

Every message is one line that says what to do.
"""

from anabranch.schemas.errors import AnabranchError


class ImportFailed(AnabranchError):
    """Base of what can go wrong with an import."""

    code = "import_failed"


class UnknownSource(ImportFailed):
    """Nothing that can be imported is there."""

    code = "unknown_source"


class FrameworkMissing(ImportFailed):
    """The interpreter that was to convert the model lacks a package."""

    code = "framework_missing"


class NotConverted(ImportFailed):
    """The framework, or its exporter, refused the model."""

    code = "not_converted"


class NotEqual(ImportFailed):
    """The ONNX model answers otherwise than the framework does."""

    code = "not_equal"


class VersionThere(ImportFailed):
    """The repository has this version already."""

    code = "version_there"
