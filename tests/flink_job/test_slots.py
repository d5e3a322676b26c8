from anabranch.flink_job.slots import group_of, slots_needed, stage_slots
from anabranch.schemas.model import Catalog, ModelSpec, StageSpec


def model(name: str, *replicas: int) -> ModelSpec:
    return ModelSpec(name, "1", "", "", (), (), stages=tuple(StageSpec("", "", (), (), count) for count in replicas))


def test_slots_needed_counts_tasks_and_stage_replicas() -> None:
    catalog = Catalog(
        {name: {"1": model(name, *replicas)} for name, replicas in (("a", [1, 3]), ("b", []), ("c", [2]))}
    )
    assert stage_slots(catalog) == 6
    assert slots_needed(catalog, parallelism=2) == 8


def test_group_of_differs_for_each_stage() -> None:
    groups = [group_of(model(name, 1, 1), index) for name in ("a", "b") for index in (0, 1)]
    assert len({*groups, "default"}) == 5
