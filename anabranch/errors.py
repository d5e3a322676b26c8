"""All errors of Anabranch, as one tree. Every class has a stable `code`.

    AnabranchError                        error
        RequestError                      request_error          the request is at fault
            UnreadableRequest             unreadable
            MalformedRequest              malformed_request
            RequestTooLarge               request_too_large
            UnknownModel                  unknown_model
            UnknownVersion                unknown_version
            UnknownInput                  unknown_input
            MissingInput                  missing_input
            UnknownOutput                 unknown_output
            WrongDatatype                 wrong_datatype
            WrongShape                    wrong_shape
            WrongSize                     wrong_size
            EmptyBatch                    empty_batch
            NonFiniteInput                non_finite_input
            InvalidParameter              invalid_parameter
        ServingError                      serving_error          the request was fine, but was not served
            InferenceFailed               inference_failed
            RunTooLong                    run_too_long
            DeadlineExceeded              deadline_exceeded
            Overloaded                    overloaded
            IncompleteAnswer              incomplete_answer
            ResponseTooLarge              response_too_large
            ExchangeFailed                exchange_failed
            InternalError                 internal_error
        TransportError                    transport_error        no answer reached the client
            BrokerUnreachable             broker_unreachable
            TopicMissing                  topic_missing
            NotSent                       not_sent
            NoAnswer                      no_answer
            ClientClosed                  client_closed
            ClientForked                  client_forked
            WaitsForItself                waits_for_itself
            CodecMissing                  codec_missing
            UnknownProperty               unknown_property
        ConfigError                       config_error           the configuration or model repository is at fault
            StagesNotPrepared             stages_not_prepared
            StateUnusable                 state_unusable
        ModelLoadFailed                   model_load_failed      a model's file is at fault
        PartitionError                    partition_error        a model cannot be cut into stages
            ModelError                    model_error
                UnreadableModel           unreadable_model
                InvalidModel              invalid_model
                UnsafeModel               unsafe_model
            CutError                      cut_error
                NoSuchCut                 no_such_cut
                UncarriedTensor           uncarried_tensor
            PlanningError                 planning_error
                NoPlan                    no_plan
                UnusableMachines          unusable_machines
            ProofError                    proof_error
                UnusableInputs            unusable_inputs
                WholeModelFailed          whole_model_failed
                StageFailed               stage_failed
                UnequalOutput             unequal_output
            PlanNotWritten                plan_not_written
        ImportFailed                      import_failed          a model of another framework was not imported
            UnknownSource                 unknown_source
            FrameworkMissing              framework_missing
            NotConverted                  not_converted
            NotEqual                      not_equal
            VersionThere                  version_there
        StackError                        stack_error            the local stack, or a Flink cluster, does not do it
            PortInUse                     port_in_use
            NotEnoughMemory               not_enough_memory
            NotRunning                    not_running
            TopicNotMade                  topic_not_made
            StartFailed                   start_failed
        JobFailed                         job_failed             the job ended, or Flink refused an operation on it
        InstallationError                 installation_error     something is not installed
            JavaNotFound                  java_not_found
            FlinkNotFound                 flink_not_found
            JarsMissing                   jars_missing
            CompilationFailed             compilation_failed
            LibpythonNotFound             libpython_not_found
        UnusableArgument                  unusable_argument      a command's argument cannot be used

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
    InvalidParameter,
    MalformedRequest,
    MissingInput,
    NonFiniteInput,
    Overloaded,
    RequestError,
    RequestTooLarge,
    ResponseTooLarge,
    RunTooLong,
    ServingError,
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
    "ImportFailed",
    "IncompleteAnswer",
    "InferenceFailed",
    "InstallationError",
    "InternalError",
    "InvalidModel",
    "InvalidParameter",
    "JarsMissing",
    "JavaNotFound",
    "JobFailed",
    "LibpythonNotFound",
    "MalformedRequest",
    "MissingInput",
    "ModelError",
    "ModelLoadFailed",
    "NoAnswer",
    "NoPlan",
    "NoSuchCut",
    "NonFiniteInput",
    "NotConverted",
    "NotEnoughMemory",
    "NotEqual",
    "NotRunning",
    "NotSent",
    "Overloaded",
    "PartitionError",
    "PlanNotWritten",
    "PlanningError",
    "PortInUse",
    "ProofError",
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
