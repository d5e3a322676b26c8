"""Every way in which cutting a model can fail, as one tree. A message is one line that says why, and what to do.

PartitionError
├── ModelError                       the file is at fault
│   ├── UnreadableModel              not there, or no ONNX model
│   ├── InvalidModel                 breaks a rule of ONNX: a tensor that no node makes, nodes in a circle
│   └── UnsafeModel                  its external data lies outside its folder
├── CutError                         the model cannot be cut there
│   ├── NoSuchCut                    not a cut: a stage would be empty, or need what a later one makes
│   └── UncarriedTensor              what would cross is no tensor that the wire carries
├── PlanningError                    no plan can be made
│   ├── NoPlan                       no way to cut the model suits these nodes
│   └── UnusableMachines                the file that describes the nodes cannot be used
├── ProofError                       the stages are not shown to equal the model
│   ├── UnusableInputs               no file of arrays, or not the model's inputs
│   ├── WholeModelFailed             the model itself does not run on the inputs
│   ├── StageFailed                  a stage does not run where the whole model does
│   └── UnequalOutput                they differ by more than the tolerance
└── PlanNotWritten                   no room, or no right to write there
"""

from anabranch.schemas.errors import AnabranchError


class PartitionError(AnabranchError):
    """Base of all of them."""

    code = "partition_error"


class ModelError(PartitionError):
    """The model's file is at fault."""

    code = "model_error"


class UnreadableModel(ModelError):
    """There is no file, or it holds no ONNX model."""

    code = "unreadable_model"


class InvalidModel(ModelError):
    """The model breaks a rule of ONNX."""

    code = "invalid_model"


class UnsafeModel(ModelError):
    """The model's external data lies outside its folder, or is no plain file."""

    code = "unsafe_model"


class CutError(PartitionError):
    """The model cannot be cut there."""

    code = "cut_error"


class NoSuchCut(CutError):
    """A stage would be empty, or need what a later stage makes."""

    code = "no_such_cut"


class UncarriedTensor(CutError):
    """What would cross is no tensor, or of a datatype that the wire does not carry."""

    code = "uncarried_tensor"


class PlanningError(PartitionError):
    """No plan can be made."""

    code = "planning_error"


class NoPlan(PlanningError):
    """No way to cut the model suits these nodes."""

    code = "no_plan"


class UnusableMachines(PlanningError):
    """The file that describes the nodes cannot be used."""

    code = "unusable_machines"


class ProofError(PartitionError):
    """The stages are not shown to equal the model."""

    code = "proof_error"


class UnusableInputs(ProofError):
    """The inputs given are no file of arrays, or not those that the model takes."""

    code = "unusable_inputs"


class WholeModelFailed(ProofError):
    """The whole model does not run on these inputs."""

    code = "whole_model_failed"


class StageFailed(ProofError):
    """A stage does not run on what the stages before it gave."""

    code = "stage_failed"


class UnequalOutput(ProofError):
    """The stages and the model give different outputs."""

    code = "unequal_output"


class PlanNotWritten(PartitionError):
    """The folder cannot be written."""

    code = "plan_not_written"
