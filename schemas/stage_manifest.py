"""`plan.json`: how a model was cut into stages. `anabranch plan` writes it beside the stages' models; the job reads it.

    x --> [ stage 0 ] -- what lives on --> [ stage 1 ] -- what lives on --> [ stage 2 ] --> y

A stage's model takes and gives just what its own nodes need and make. What a later stage needs of an earlier one than
its neighbour (a skip connection, an input of the whole model) travels past the stages between them.
"""

import msgspec

#: The key of a stage's metadata that holds the SHA-256 of its external data, which lies in `FILE.data`.
DATA_SHA256 = "anabranch.data_sha256"


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One stage.

    Attributes:
        file: Its model, beside the manifest.
        sha256: Of that file, in hex. Where it has external data, its metadata hold the SHA-256 of that.
        inputs: Names of the tensors that its model takes: inputs of the whole model, or outputs of earlier stages.
        outputs: Names of the tensors that its model gives.
        nodes: How many of the model's nodes it has.
        parameter_bytes: Size of its weights.
        ms: What a batch of the plan's rows took, by profile.
        output_bytes: What a batch of the plan's rows sends on to the next stage, what only travels past it included;
            0 for the last.
        replicas: How many tasks share its work.
    """

    file: str
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    parameter_bytes: int
    ms: float
    output_bytes: int
    replicas: int = 1


class StageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest.

    Attributes:
        model_sha256: Of the whole model's file.
        rows: Rows of the batch that was profiled.
        bottleneck_ms: How often the pipeline gives a batch at best: the time of its slowest stage or transfer.
        stages: In the order of their data.
    """

    model_sha256: str
    rows: int
    bottleneck_ms: float
    stages: tuple[StageEntry, ...]


def encode_plan(plan: StageManifest) -> bytes:
    """The manifest's text."""
    return msgspec.json.format(msgspec.json.encode(plan)) + b"\n"


def decode_plan(text: bytes) -> StageManifest:
    """A manifest from its text.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return msgspec.json.decode(text, type=StageManifest)
