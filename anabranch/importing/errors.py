"""What can go wrong with an import.

    ImportFailed
    ├── UnknownSource       nothing that can be imported is there
    ├── FrameworkMissing    the interpreter lacks PyTorch, or TensorFlow
    ├── NotConverted        the framework's exporter refused the model
    ├── NotEqual            the ONNX model answers otherwise than the framework
    └── VersionThere        the repository has this version already

Every message is one line that says what to do.
"""


class ImportFailed(Exception):
    """Base of what can go wrong with an import."""


class UnknownSource(ImportFailed):
    """Nothing that can be imported is there."""


class FrameworkMissing(ImportFailed):
    """The interpreter that was to convert the model lacks a package."""


class NotConverted(ImportFailed):
    """The framework, or its exporter, refused the model."""


class NotEqual(ImportFailed):
    """The ONNX model answers otherwise than the framework does."""


class VersionThere(ImportFailed):
    """The repository has this version already."""
