"""Identities of the job's operators, by which Flink finds their state again: a changed one loses state."""

from anabranch.schemas.model import ModelSpec

REQUESTS = "requests"
SERVE = "serve"
INFER = "infer"
AGGREGATE = "aggregate"
SERVE_RESPONSES = "responses"
INFER_RESPONSES = "exchanged-responses"
AGGREGATE_RESPONSES = "merged-responses"
ERRORS = "errors"


def unpack_id(sink_id: str) -> str:
    """Return the identity of the operator that unpacks the answers of a sink."""
    return f"unpack-{sink_id}"


def stage_id(model: ModelSpec, index: int) -> str:
    """Return the identity of a stage."""
    return f"stage/{model.name}/{model.version}/{index}"
