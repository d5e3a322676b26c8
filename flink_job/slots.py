"""Slot-sharing groups.

default            serve, infer and aggregate: job.parallelism slots
NAME-VERSION-sN    one stage: a slot for each replica
"""

from anabranch.schemas.model import Catalog, ModelSpec

DEFAULT_GROUP = "default"


def group_of(model: ModelSpec, index: int) -> str:
    """Return the group of a stage."""
    return f"{model.name}-{model.version}-s{index}"


def stage_slots(catalog: Catalog) -> int:
    """Return the slots of all stages."""
    return sum(stage.replicas for model in catalog.in_stages() for stage in model.stages)


def slots_needed(catalog: Catalog, parallelism: int) -> int:
    """Return the slots of a job."""
    return parallelism + stage_slots(catalog)
