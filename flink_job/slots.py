"""Where the tasks of a job sit: slot-sharing groups, and how many slots these need.

    default            admit, shard, infer, aggregate of one task share a slot: job.parallelism slots
    NAME-VERSION-sN    a stage of a model shares with nobody: as many slots as it has replicas

With TaskManagers of one slot, as `anabranch up` starts them, every task of a stage thus has a process of its own, which
holds the weights of that stage and no others.
"""

from anabranch.schemas.model import Catalog, ModelSpec

#: Flink's own name of it.
DEFAULT_GROUP = "default"


def group_of(model: ModelSpec, index: int) -> str:
    """The slot-sharing group of a stage."""
    return f"{model.name}-{model.version}-s{index}"


def stage_slots(catalog: Catalog) -> int:
    """How many slots the stages of all models need."""
    return sum(stage.replicas for model in catalog.in_stages() for stage in model.stages)


def slots_needed(catalog: Catalog, parallelism: int) -> int:
    """How many slots a job needs; with fewer, Flink waits and runs nothing."""
    return parallelism + stage_slots(catalog)
