"""Slot-sharing groups of the job.

default            serve, infer and aggregate of a task: job.parallelism slots
NAME-VERSION-sN    one stage alone: a slot for each replica, which loads only that stage
"""

from anabranch.schemas.model import Catalog, ModelSpec

#: Flink's own name.
DEFAULT_GROUP = "default"


def group_of(model: ModelSpec, index: int) -> str:
    """Returns the slot-sharing group of a stage."""
    return f"{model.name}-{model.version}-s{index}"


def stage_slots(catalog: Catalog) -> int:
    """Returns the slots that all stages need."""
    return sum(stage.replicas for model in catalog.in_stages() for stage in model.stages)


def slots_needed(catalog: Catalog, parallelism: int) -> int:
    """Returns the slots that a job needs before Flink starts it."""
    return parallelism + stage_slots(catalog)
