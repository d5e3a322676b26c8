"""The public interface of Anabranch: `Client` sends numpy arrays to a running job and returns its outputs.

    with anabranch.Client("127.0.0.1:9092") as client:
        result = client.infer("digits", {"x": images})
        result["logits"]

Names are loaded on first use, so that the import is quick. `anabranch.errors` has all errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.async_client import AsyncClient
    from anabranch.client import Client
    from anabranch.errors import (
        AnabranchError,
        BrokerUnreachable,
        ClientClosed,
        ClientForked,
        CodecMissing,
        CompilationFailed,
        ConfigError,
        CutError,
        DeadlineExceeded,
        EmptyBatch,
        ExchangeFailed,
        ExportIncomplete,
        FlinkNotFound,
        FrameworkMissing,
        GatewayRefused,
        GatewayUnreachable,
        ImportFailed,
        IncompleteAnswer,
        InferenceFailed,
        InstallationError,
        InternalError,
        InvalidField,
        InvalidModel,
        InvalidParameter,
        JarsMissing,
        JavaNotFound,
        JobConflict,
        JobFailed,
        LetterMissing,
        LibpythonNotFound,
        MalformedRequest,
        MappingFailed,
        MissingField,
        MissingInput,
        ModelError,
        ModelLoadFailed,
        ModelStoreUnusable,
        ModelUnavailable,
        NoAnswer,
        NonFiniteInput,
        NoPlan,
        NoSuchCut,
        NotConverted,
        NotEnoughMemory,
        NotEqual,
        NotRunning,
        NotSent,
        OriginalMissing,
        OutOfMemory,
        Overloaded,
        PartitionError,
        PlanningError,
        PlanNotWritten,
        PortInUse,
        ProofError,
        RegistryUnavailable,
        ReplyRefused,
        RequestCrashesModel,
        RequestError,
        RequestTooLarge,
        ResponseTooLarge,
        RunTooLong,
        SchemaRefused,
        ServingError,
        StackError,
        StageFailed,
        StagesNotPrepared,
        StartFailed,
        StateUnusable,
        TopicMissing,
        TopicNotMade,
        TransportError,
        UncarriedTensor,
        UnequalOutput,
        UnknownFlow,
        UnknownInput,
        UnknownModel,
        UnknownOutput,
        UnknownProperty,
        UnknownSchema,
        UnknownSource,
        UnknownVersion,
        UnreadableInput,
        UnreadableModel,
        UnreadableRequest,
        UnsafeModel,
        UnusableArgument,
        UnusableInputs,
        UnusableMachines,
        VersionThere,
        WaitsForItself,
        WholeModelFailed,
        WrongDatatype,
        WrongShape,
        WrongSize,
    )
    from anabranch.flink_job.kafka.security import KafkaSecurity
    from anabranch.result import Result

    __version__: str

__all__ = [
    "AnabranchError",
    "AsyncClient",
    "BrokerUnreachable",
    "Client",
    "ClientClosed",
    "ClientForked",
    "CodecMissing",
    "CompilationFailed",
    "ConfigError",
    "CutError",
    "DeadlineExceeded",
    "EmptyBatch",
    "ExchangeFailed",
    "ExportIncomplete",
    "FlinkNotFound",
    "FrameworkMissing",
    "GatewayRefused",
    "GatewayUnreachable",
    "ImportFailed",
    "IncompleteAnswer",
    "InferenceFailed",
    "InstallationError",
    "InternalError",
    "InvalidField",
    "InvalidModel",
    "InvalidParameter",
    "JarsMissing",
    "JavaNotFound",
    "JobConflict",
    "JobFailed",
    "KafkaSecurity",
    "LetterMissing",
    "LibpythonNotFound",
    "MalformedRequest",
    "MappingFailed",
    "MissingField",
    "MissingInput",
    "ModelError",
    "ModelLoadFailed",
    "ModelStoreUnusable",
    "ModelUnavailable",
    "NoAnswer",
    "NoPlan",
    "NoSuchCut",
    "NonFiniteInput",
    "NotConverted",
    "NotEnoughMemory",
    "NotEqual",
    "NotRunning",
    "NotSent",
    "OriginalMissing",
    "OutOfMemory",
    "Overloaded",
    "PartitionError",
    "PlanNotWritten",
    "PlanningError",
    "PortInUse",
    "ProofError",
    "RegistryUnavailable",
    "ReplyRefused",
    "RequestCrashesModel",
    "RequestError",
    "RequestTooLarge",
    "ResponseTooLarge",
    "Result",
    "RunTooLong",
    "SchemaRefused",
    "ServingError",
    "StackError",
    "StageFailed",
    "StagesNotPrepared",
    "StartFailed",
    "StateUnusable",
    "TopicMissing",
    "TopicNotMade",
    "TransportError",
    "UncarriedTensor",
    "UnequalOutput",
    "UnknownFlow",
    "UnknownInput",
    "UnknownModel",
    "UnknownOutput",
    "UnknownProperty",
    "UnknownSchema",
    "UnknownSource",
    "UnknownVersion",
    "UnreadableInput",
    "UnreadableModel",
    "UnreadableRequest",
    "UnsafeModel",
    "UnusableArgument",
    "UnusableInputs",
    "UnusableMachines",
    "VersionThere",
    "WaitsForItself",
    "WholeModelFailed",
    "WrongDatatype",
    "WrongShape",
    "WrongSize",
    "__version__",
]
_MODULES = {
    "AsyncClient": "anabranch.async_client",
    "Client": "anabranch.client",
    "KafkaSecurity": "anabranch.flink_job.kafka.security",
    "Result": "anabranch.result",
}


# Hidden from type checkers, which would accept every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return _version()
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES.get(name, "anabranch.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - 20 ms that most programs never need

    try:
        return version("anabranch")
    except PackageNotFoundError:
        return "0+unknown"
