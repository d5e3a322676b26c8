"""All errors of Anabranch, as one tree. Every class has a stable `code`; `docs/reference/errors.md` draws the tree.

Each class is defined where it is raised. `ModelLoadFailed` is loaded on first use, because it needs numpy.
"""

from typing import TYPE_CHECKING, Any

from anabranch.flink_job.errors import (
    CompilationFailed,
    ConfigError,
    FlinkNotFound,
    InstallationError,
    JarsMissing,
    JavaNotFound,
    JobFailed,
    LibpythonNotFound,
    ModelStoreUnusable,
    StagesNotPrepared,
    StateUnusable,
)
from anabranch.importing.errors import (
    FrameworkMissing,
    ImportFailed,
    NotConverted,
    NotEqual,
    UnknownSource,
    VersionThere,
)
from anabranch.messaging.errors import (
    BrokerUnreachable,
    ClientClosed,
    ClientForked,
    CodecMissing,
    GatewayRefused,
    GatewayUnreachable,
    NoAnswer,
    NotSent,
    TopicMissing,
    TransportError,
    UnknownProperty,
    WaitsForItself,
)
from anabranch.partition.errors import (
    CutError,
    InvalidModel,
    ModelError,
    NoPlan,
    NoSuchCut,
    PartitionError,
    PlanningError,
    PlanNotWritten,
    ProofError,
    StageFailed,
    UncarriedTensor,
    UnequalOutput,
    UnreadableModel,
    UnsafeModel,
    UnusableInputs,
    UnusableMachines,
    WholeModelFailed,
)
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    EmptyBatch,
    ExchangeFailed,
    IncompleteAnswer,
    InferenceFailed,
    InternalError,
    InvalidField,
    InvalidParameter,
    MalformedRequest,
    MappingFailed,
    MissingField,
    MissingInput,
    ModelUnavailable,
    NonFiniteInput,
    OutOfMemory,
    Overloaded,
    ReplyRefused,
    RequestCrashesModel,
    RequestError,
    RequestTooLarge,
    ResponseTooLarge,
    RunTooLong,
    ServingError,
    UnknownFlow,
    UnknownInput,
    UnknownModel,
    UnknownOutput,
    UnknownVersion,
    UnreadableRequest,
    WrongDatatype,
    WrongShape,
    WrongSize,
)
from anabranch.stack.errors import (
    JobConflict,
    NotEnoughMemory,
    NotRunning,
    PortInUse,
    StackError,
    StartFailed,
    TopicNotMade,
)

if TYPE_CHECKING:
    from anabranch.operators.backends.base import ModelLoadFailed


class UnusableArgument(AnabranchError):
    """An argument of a command cannot be used."""

    code = "unusable_argument"


__all__ = [
    "AnabranchError",
    "BrokerUnreachable",
    "ClientClosed",
    "ClientForked",
    "CodecMissing",
    "CompilationFailed",
    "ConfigError",
    "CutError",
    "DeadlineExceeded",
    "EmptyBatch",
    "ExchangeFailed",
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
    "OutOfMemory",
    "Overloaded",
    "PartitionError",
    "PlanNotWritten",
    "PlanningError",
    "PortInUse",
    "ProofError",
    "ReplyRefused",
    "RequestCrashesModel",
    "RequestError",
    "RequestTooLarge",
    "ResponseTooLarge",
    "RunTooLong",
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
    "UnknownSource",
    "UnknownVersion",
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
]


# Hidden from type checkers, which would accept every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "ModelLoadFailed":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from anabranch.operators.backends.base import ModelLoadFailed  # noqa: PLC0415 - loads numpy

        return ModelLoadFailed
