"""The stage manifest `plan.json`, written by `anabranch plan`.

x --> [ stage 0 ] -- live tensors --> [ stage 1 ] --> y
"""

import msgspec

#: Metadata key for the SHA-256 of external data, `FILE.data`.
DATA_SHA256 = "anabranch.data_sha256"


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One stage.

    Attributes:
        file: Model, in the manifest's folder.
        nodes: Number of graph nodes.
        ms: Profiled time of a batch.
        output_bytes: Sent to the next stage per batch; 0 for the last.
        replicas: Number of tasks.
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
    """The manifest of a model that was cut.

    Attributes:
        rows: Rows of a profiled batch.
        bottleneck_ms: Time of the slowest stage or transfer.
    """

    model_sha256: str
    rows: int
    bottleneck_ms: float
    stages: tuple[StageEntry, ...]


def encode_manifest(manifest: StageManifest) -> bytes:
    """Encode a manifest as JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def decode_manifest(text: bytes) -> StageManifest:
    """Decode a manifest, or raise a MsgspecError."""
    return msgspec.json.decode(text, type=StageManifest)
