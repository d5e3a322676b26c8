"""Errors of cutting a model."""

from anabranch.schemas.errors import AnabranchError


class PartitionError(AnabranchError):
    """A model cannot be cut into stages."""

    code = "partition_error"


class ModelError(PartitionError):
    """The model's file is at fault."""

    code = "model_error"


class UnreadableModel(ModelError):
    """The file is missing, or is not an ONNX model."""

    code = "unreadable_model"


class InvalidModel(ModelError):
    """The model breaks a rule of ONNX."""

    code = "invalid_model"


class UnsafeModel(ModelError):
    """External data is outside the model's folder, or not a plain file."""

    code = "unsafe_model"


class CutError(PartitionError):
    """The model cannot be cut there."""

    code = "cut_error"


class NoSuchCut(CutError):
    """A stage would be empty, or read a tensor of a later stage."""

    code = "no_such_cut"


class UncarriedTensor(CutError):
    """The wire cannot carry a crossing value."""

    code = "uncarried_tensor"


class PlanningError(PartitionError):
    """No plan can be made."""

    code = "planning_error"


class NoPlan(PlanningError):
    """The model cannot be cut for these machines."""

    code = "no_plan"


class UnusableMachines(PlanningError):
    """The file that describes the machines cannot be used."""

    code = "unusable_machines"


class ProofError(PartitionError):
    """The stages are not shown to equal the model."""

    code = "proof_error"


class UnusableInputs(ProofError):
    """The given inputs cannot be read, or do not fit the model."""

    code = "unusable_inputs"


class WholeModelFailed(ProofError):
    """The whole model does not run on these inputs."""

    code = "whole_model_failed"


class StageFailed(ProofError):
    """A stage does not run on the outputs of the stages before it."""

    code = "stage_failed"


class UnequalOutput(ProofError):
    """The stages and the model give different outputs."""

    code = "unequal_output"


class PlanNotWritten(PartitionError):
    """The folder cannot be written."""

    code = "plan_not_written"
